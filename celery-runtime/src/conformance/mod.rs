//! The test suite for implementations of [`Broker`], [`ResultBackend`] with its
//! [`ChordStore`], and [`Store`].
//!
//! A crate that implements one of these traits enables the feature `conformance`
//! for its tests, implements the set-up trait and calls the macro:
//!
//! | trait | set-up | macro |
//! |---|---|---|
//! | [`Broker`] | [`BrokerSetup`](broker::BrokerSetup) | [`broker_conformance!`](crate::broker_conformance) |
//! | [`ResultBackend`], [`ChordStore`] | [`BackendSetup`](backend::BackendSetup) | [`backend_conformance!`](crate::backend_conformance) |
//! | [`Store`] | [`StoreSetup`](store::StoreSetup) | [`store_conformance!`](crate::store_conformance) |
//!
//! Each case is a public async function that panics when the implementation
//! breaks the contract of its trait. The macros make a `#[tokio::test]` of each
//! case, so that a test report names the broken rule; the calling crate needs
//! tokio with its features `macros` and `rt-multi-thread`. Two invocations of
//! one macro must be in different modules.
//!
//! The suite follows what the implementation declares:
//! [`BrokerCapabilities`](crate::BrokerCapabilities),
//! [`BackendCapabilities`](crate::BackendCapabilities) and
//! [`ResultBackend::chords`]. Cases of a missing feature pass without an
//! assertion, and a declared feature is checked.
//!
//! All names of queues, keys and ids are random, so one server can serve all
//! cases at the same time.
//!
//! [`Broker`]: crate::Broker
//! [`ResultBackend`]: crate::ResultBackend
//! [`ResultBackend::chords`]: crate::ResultBackend::chords
//! [`ChordStore`]: crate::ChordStore
//! [`Store`]: crate::Store

pub mod backend;
pub mod broker;
pub mod store;

use std::future::Future;
use std::time::Duration;

use crate::env;

/// The time limit of one step. A healthy server needs less; the limit ends the
/// tests of an implementation that never answers.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the value of `future`, or panics after [`STEP_TIMEOUT`].
async fn wait_for<T>(step: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STEP_TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{step}: no answer within {STEP_TIMEOUT:?}"),
    }
}

/// Returns a name that no other test uses.
fn unique_name(prefix: &str) -> String {
    format!("{prefix}-{}", env::uuid())
}

/// Makes a test of each case; each test evaluates `$setup`.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    (@one ($($module:tt)*) [$($attribute:tt)*] $setup:expr, $case:ident) => {
        $($attribute)*
        #[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let setup = $setup;
            $crate::conformance::$($module)*::$case(&setup).await;
        }
    };
    ($module:tt $attributes:tt $setup:expr, $($case:ident)*) => {
        $($crate::conformance_tests!(@one $module $attributes $setup, $case);)*
    };
}
