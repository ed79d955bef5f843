//! The contract of [`Store`].

use std::sync::Arc;
use std::time::Duration;

use crate::boundary::Store;
use crate::conformance::{fresh, soon};

/// A store to test.
pub trait StoreSetup: Send + Sync {
    /// A new client of the same server.
    fn store(&self) -> Arc<dyn Store>;
}

/// One test for each case of the suite.
#[macro_export]
macro_rules! store_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::__conformance_tests!(store $attributes $setup,
            one_of_many_gets_the_key
            only_the_owner_extends_and_deletes
            counters_count_for_everybody
            keys_die_in_time
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::store_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::store_conformance!(@cases [] $setup);
    };
}

const LONG: Duration = Duration::from_secs(60);

/// Of many that want to set a key, one does.
pub async fn one_of_many_gets_the_key(setup: &dyn StoreSetup) {
    let key = fresh("lock");
    let mut winners = 0;
    for n in 0..10u8 {
        let put = setup.store();
        winners += usize::from(
            soon("put", put.put_if_absent(&key, &[n], LONG))
                .await
                .expect("put"),
        );
    }
    assert_eq!(winners, 1);
    let value = soon("get", setup.store().get(&key)).await.expect("got");
    assert_eq!(value.as_deref(), Some(&[0][..]));
}

/// The value is the proof of ownership.
pub async fn only_the_owner_extends_and_deletes(setup: &dyn StoreSetup) {
    let (store, key) = (setup.store(), fresh("owner"));
    assert!(
        soon("put", store.put_if_absent(&key, b"me", LONG))
            .await
            .expect("put")
    );
    assert!(
        !soon("extend", store.extend(&key, b"you", LONG))
            .await
            .expect("extend")
    );
    assert!(
        soon("extend", store.extend(&key, b"me", LONG))
            .await
            .expect("extend")
    );
    assert!(
        !soon("delete", store.compare_and_delete(&key, b"you"))
            .await
            .expect("delete")
    );
    assert!(
        soon("delete", store.compare_and_delete(&key, b"me"))
            .await
            .expect("delete")
    );
    assert!(
        !soon("extend", store.extend(&key, b"me", LONG))
            .await
            .expect("extend")
    );
    assert_eq!(soon("get", store.get(&key)).await.expect("got"), None);
}

/// Counts of several clients add up.
pub async fn counters_count_for_everybody(setup: &dyn StoreSetup) {
    let (one, two, key) = (setup.store(), setup.store(), fresh("counter"));
    for expected in [1, 3, 5] {
        assert_eq!(
            soon("count", one.count(&key, LONG)).await.expect("count"),
            expected
        );
        assert_eq!(
            soon("count", two.count(&key, LONG)).await.expect("count"),
            expected + 1
        );
    }
}

/// What is not extended disappears.
pub async fn keys_die_in_time(setup: &dyn StoreSetup) {
    let (store, key) = (setup.store(), fresh("short"));
    let short = Duration::from_millis(300);
    assert!(
        soon("put", store.put_if_absent(&key, b"1", short))
            .await
            .expect("put")
    );
    let gone = async {
        while store.get(&key).await.expect("got").is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("expiry", gone).await;
    let counter = fresh("short-counter");
    assert_eq!(
        soon("count", store.count(&counter, short))
            .await
            .expect("count"),
        1
    );
    let restarted = async {
        while store.count(&counter, short).await.expect("count") != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("restart", restarted).await;
}
