//! The conformance suite on the in-memory services.

use std::sync::Arc;
use std::time::Duration;

use celery_runtime::conformance::{backend, broker, store};
use celery_runtime::memory::{MemoryBackend, MemoryBroker, MemoryStore};
use celery_runtime::{
    Broker, Clock, ResultBackend, Store, backend_conformance, broker_conformance, store_conformance,
};

use crate::support::start_time;

#[derive(Default)]
struct Memory {
    broker: MemoryBroker,
    backend: MemoryBackend,
    store: MemoryStore,
}

impl broker::BrokerSetup for Memory {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(self.broker.clone())
    }
}

impl backend::BackendSetup for Memory {
    fn backend(&self) -> Arc<dyn ResultBackend> {
        Arc::new(self.backend.clone())
    }
}

impl store::StoreSetup for Memory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }
}

broker_conformance!(Memory::default());
backend_conformance!(Memory::default());
store_conformance!(Memory::default());

#[tokio::test(start_paused = true)]
async fn extended_key_expires_in_virtual_time() {
    let store = MemoryStore::with_clock(Clock::tokio(start_time()));
    let minute = Duration::from_secs(60);
    assert!(store.put_if_absent("lock", b"me", minute).await.unwrap());
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(store.extend("lock", b"me", minute).await.unwrap());
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(
        store.get("lock").await.unwrap().as_deref(),
        Some(&b"me"[..])
    );
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(store.get("lock").await.unwrap(), None);
}
