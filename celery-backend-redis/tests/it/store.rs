//! The shared store.

use std::sync::Arc;
use std::time::Duration;

use celery_backend_redis::RedisStore;
use celery_runtime::Store;
use serde_json::json;
use test_servers::RedisServer;

use crate::support::{count, options, wait_until};

const LONG: Duration = Duration::from_secs(60);

fn store(server: &RedisServer) -> RedisStore {
    RedisStore::new(options(server, &json!({"global_keyprefix": "shop"})))
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn put_if_absent_has_one_winner_which_extends_and_deletes() {
    let server = RedisServer::start();
    let store = store(&server);
    assert!(store.put_if_absent("lock", b"me", LONG).await.unwrap());
    assert!(!store.put_if_absent("lock", b"you", LONG).await.unwrap());
    assert_eq!(store.get("lock").await.unwrap().unwrap(), "me");
    assert!(!store.extend("lock", b"you", LONG).await.unwrap());
    assert!(store.extend("lock", b"me", 10 * LONG).await.unwrap());
    assert!(count(&server, &["PTTL", "shop_celery-rs-lock"]) > 500_000);
    assert!(!store.compare_and_delete("lock", b"you").await.unwrap());
    assert!(store.compare_and_delete("lock", b"me").await.unwrap());
    assert!(!store.compare_and_delete("lock", b"me").await.unwrap());
    assert_eq!(store.get("lock").await.unwrap(), None);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn every_key_expires() {
    let server = RedisServer::start();
    let store = store(&server);
    let short = Duration::from_millis(20);
    assert!(store.put_if_absent("lock", b"me", short).await.unwrap());
    assert!(
        store
            .put_if_absent("at once", b"me", Duration::ZERO)
            .await
            .unwrap()
    );
    assert_eq!(store.count("counter", short).await.unwrap(), 1);
    wait_until("all keys are gone", async || {
        count(&server, &["DBSIZE"]) == 0
    })
    .await;
    assert!(!store.extend("lock", b"me", LONG).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn concurrent_counts_are_not_lost() {
    let server = RedisServer::start();
    let store = Arc::new(store(&server));
    let counting = (0..50).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.count("counter", LONG).await.unwrap() })
    });
    let mut counts = Vec::new();
    for counted in counting.collect::<Vec<_>>() {
        counts.push(counted.await.unwrap());
    }
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<u64>>());
    assert!(count(&server, &["PTTL", "shop_celery-rs-counter"]) > 0);
}
