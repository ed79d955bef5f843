//! The tests that every broker, result backend and store runs.
//!
//! Each is an async function that panics when the implementation breaks the
//! contract of its trait. [`broker_conformance!`](crate::broker_conformance)
//! and its siblings make one `#[tokio::test]` of each, so that a report names
//! what failed.

pub mod backend;
pub mod broker;
pub mod store;

use std::future::Future;
use std::time::Duration;

use crate::env;

/// No step of these tests takes longer on a healthy server; it keeps a broken
/// implementation from hanging them.
const PATIENCE: Duration = Duration::from_secs(20);

/// The value of `future`, which must come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing came within {PATIENCE:?}"),
    }
}

/// A name that no other test uses.
fn fresh(what: &str) -> String {
    format!("{what}-{}", env::uuid())
}

/// Makes a test of each case; `$setup` is evaluated in each of them.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    (@one $suite:ident [$($attribute:tt)*] $setup:expr, $case:ident) => {
        $($attribute)*
        #[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let setup = $setup;
            $crate::conformance::$suite::$case(&setup).await;
        }
    };
    ($suite:ident $attributes:tt $setup:expr, $($case:ident)*) => {
        $($crate::__conformance_tests!(@one $suite $attributes $setup, $case);)*
    };
}
