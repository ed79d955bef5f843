//! The conformance suite of the runtime.

use std::sync::Arc;

use celery_runtime::{Broker, broker_conformance, conformance};
use serde_json::json;
use test_servers::RedisServer;

struct Setup(RedisServer);

impl conformance::broker::BrokerSetup for Setup {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(crate::support::broker_with(&self.0, &json!({})))
    }
}

broker_conformance!(
    ignore = "needs redis-server; run cargo xtask test",
    Setup(RedisServer::start())
);
