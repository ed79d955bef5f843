//! Shared helpers of the tests.

use std::sync::Arc;

use celery_backend_redis::{RedisBackend, RedisStore};
use celery_broker_redis::RedisOptions;
use celery_protocol::{Raw, ResultDocument, State};
use celery_runtime::{ResultBackend, ResultRecord, Store, conformance};
use serde_json::{Value, json};
use test_servers::RedisServer;

pub(crate) use test_support::{TIMEOUT, wait_until};

/// A server and its clients.
pub(crate) struct Setup {
    pub(crate) server: RedisServer,
}

impl Setup {
    pub(crate) fn start() -> Self {
        Self {
            server: RedisServer::start(),
        }
    }

    pub(crate) fn redis_backend(&self) -> RedisBackend {
        backend(&self.server)
    }

    pub(crate) fn options_with(&self, given: &Value) -> RedisOptions {
        options(&self.server, given)
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.server.command(&["GET", key]).text()
    }

    pub(crate) fn integer(&self, command: &[&str]) -> i64 {
        self.server.command(command).integer()
    }
}

impl conformance::backend::BackendSetup for Setup {
    fn backend(&self) -> Arc<dyn ResultBackend> {
        Arc::new(self.redis_backend())
    }
}

impl conformance::store::StoreSetup for Setup {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(RedisStore::new(self.options_with(&json!({}))))
    }
}

/// The document of a task that returned `result`.
pub(crate) fn success(id: &str, result: &'static str) -> ResultDocument<'static> {
    let mut document = document(id, State::Success, result);
    document.children = Some(Raw::json("[]"));
    document
}

pub(crate) async fn store_it(backend: &RedisBackend, document: &ResultDocument<'_>) {
    backend
        .store(ResultRecord::new(document))
        .await
        .expect("stored");
}

pub(crate) fn options(server: &RedisServer, options: &Value) -> RedisOptions {
    let options = options.as_object().expect("an object");
    RedisOptions::parse(&server.url(), options).expect("options")
}

pub(crate) fn backend(server: &RedisServer) -> RedisBackend {
    RedisBackend::new(options(server, &json!({})))
}

pub(crate) fn document(id: &str, status: State, result: &'static str) -> ResultDocument<'static> {
    ResultDocument::new(id.to_owned(), status, Raw::json(result))
}

pub(crate) async fn store(backend: &RedisBackend, id: &str, status: State, result: &'static str) {
    let document = document(id, status, result);
    store_it(backend, &document).await;
}

pub(crate) async fn fetch(backend: &RedisBackend, id: &str) -> Option<ResultDocument<'static>> {
    let ids = [id.to_owned()];
    backend.fetch(&ids).await.expect("fetched").remove(0)
}

pub(crate) async fn status(backend: &RedisBackend, id: &str) -> State {
    fetch(backend, id).await.expect("a document").status
}

/// Waits again after transient errors, as clients do.
pub(crate) async fn wait_with_retries(
    backend: &dyn ResultBackend,
    id: &str,
) -> ResultDocument<'static> {
    loop {
        match backend.wait(id).await {
            Ok(document) => return document,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

pub(crate) fn count(server: &RedisServer, command: &[&str]) -> i64 {
    server.command(command).integer()
}

/// Returns the number of subscribed channels.
pub(crate) fn channels(server: &RedisServer) -> usize {
    server.command(&["PUBSUB", "CHANNELS"]).texts().len()
}
