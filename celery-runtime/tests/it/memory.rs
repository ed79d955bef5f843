//! The in-memory services by themselves; the conformance suite does the rest.

use std::time::Duration;

use celery_runtime::memory::MemoryStore;
use celery_runtime::{Clock, Store};

use crate::support::start_time;

#[tokio::test(start_paused = true)]
async fn the_store_forgets_in_time() {
    let store = MemoryStore::with_clock(Clock::tokio(start_time()));
    let minute = Duration::from_secs(60);
    assert!(store.put_if_absent("lock", b"me", minute).await.unwrap());
    assert!(!store.put_if_absent("lock", b"you", minute).await.unwrap());
    assert!(!store.compare_and_delete("lock", b"you").await.unwrap());
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(store.extend("lock", b"me", minute).await.unwrap());
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(store.get("lock").await.unwrap().as_deref(), Some(&b"me"[..]));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(store.get("lock").await.unwrap(), None);

    assert_eq!(store.count("n", minute).await.unwrap(), 1);
    assert_eq!(store.count("n", minute).await.unwrap(), 2);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(store.count("n", minute).await.unwrap(), 1);
}
