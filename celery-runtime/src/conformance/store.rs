//! The cases for [`Store`]: [`store_conformance!`](crate::store_conformance).

use std::sync::Arc;
use std::time::Duration;

use crate::boundary::Store;
use crate::conformance::{unique_name, wait_for};

/// A store under test.
pub trait StoreSetup: Send + Sync {
    /// Returns a new client of the same server.
    fn store(&self) -> Arc<dyn Store>;
}

/// Makes a test of each case for a store.
///
/// The argument is an expression that makes a
/// [`StoreSetup`](crate::conformance::store::StoreSetup); each test evaluates it.
///
/// ```
/// use std::sync::Arc;
///
/// use celery_runtime::Store;
/// use celery_runtime::conformance::store::StoreSetup;
/// use celery_runtime::memory::MemoryStore;
///
/// struct Setup(MemoryStore);
///
/// impl StoreSetup for Setup {
///     fn store(&self) -> Arc<dyn Store> {
///         Arc::new(self.0.clone())
///     }
/// }
///
/// celery_runtime::store_conformance!(Setup(MemoryStore::new()));
/// # fn main() {}
/// ```
///
/// Tests that need a server can be ignored by default, with a reason:
/// `store_conformance!(ignore = "needs a server", Setup::start())`.
#[macro_export]
macro_rules! store_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::conformance_tests!((store) $attributes $setup,
            key_is_set_by_one_of_many
            key_is_changed_only_with_its_value
            counter_adds_up_over_clients
            expired_key_is_removed
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::store_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::store_conformance!(@cases [] $setup);
    };
}

/// The time to live of a key that does not expire within a test.
const LONG_TTL: Duration = Duration::from_secs(60);

/// Of many clients that set a key, one succeeds.
pub async fn key_is_set_by_one_of_many(setup: &dyn StoreSetup) {
    let key = unique_name("lock");
    let mut winners = 0;
    for n in 0..10u8 {
        let put = setup.store();
        winners += usize::from(
            wait_for("put", put.put_if_absent(&key, &[n], LONG_TTL))
                .await
                .expect("put"),
        );
    }
    assert_eq!(winners, 1);
    let value = wait_for("get", setup.store().get(&key)).await.expect("got");
    assert_eq!(value.as_deref(), Some(&[0][..]));
}

/// A key is extended and deleted only with the value that it holds.
pub async fn key_is_changed_only_with_its_value(setup: &dyn StoreSetup) {
    let (store, key) = (setup.store(), unique_name("owner"));
    assert!(
        wait_for("put", store.put_if_absent(&key, b"me", LONG_TTL))
            .await
            .expect("put")
    );
    assert!(
        !wait_for("extend", store.extend(&key, b"you", LONG_TTL))
            .await
            .expect("extend")
    );
    assert!(
        wait_for("extend", store.extend(&key, b"me", LONG_TTL))
            .await
            .expect("extend")
    );
    assert!(
        !wait_for("delete", store.compare_and_delete(&key, b"you"))
            .await
            .expect("delete")
    );
    assert!(
        wait_for("delete", store.compare_and_delete(&key, b"me"))
            .await
            .expect("delete")
    );
    assert!(
        !wait_for("extend", store.extend(&key, b"me", LONG_TTL))
            .await
            .expect("extend")
    );
    assert_eq!(wait_for("get", store.get(&key)).await.expect("got"), None);
}

/// Counts of several clients add up.
pub async fn counter_adds_up_over_clients(setup: &dyn StoreSetup) {
    let (one, two, key) = (setup.store(), setup.store(), unique_name("counter"));
    for expected in [1, 3, 5] {
        assert_eq!(
            wait_for("count", one.count(&key, LONG_TTL))
                .await
                .expect("count"),
            expected
        );
        assert_eq!(
            wait_for("count", two.count(&key, LONG_TTL))
                .await
                .expect("count"),
            expected + 1
        );
    }
}

/// A key that is not extended expires, and an expired counter starts at one.
pub async fn expired_key_is_removed(setup: &dyn StoreSetup) {
    let (store, key) = (setup.store(), unique_name("short"));
    let short = Duration::from_millis(300);
    assert!(
        wait_for("put", store.put_if_absent(&key, b"1", short))
            .await
            .expect("put")
    );
    let gone = async {
        while store.get(&key).await.expect("got").is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    wait_for("expiry", gone).await;
    let counter = unique_name("short-counter");
    assert_eq!(
        wait_for("count", store.count(&counter, short))
            .await
            .expect("count"),
        1
    );
    let restarted = async {
        while store.count(&counter, short).await.expect("count") != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    wait_for("restart", restarted).await;
}
