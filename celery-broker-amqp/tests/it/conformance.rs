//! The conformance suite of the runtime, on classic and quorum queues.

use std::sync::Arc;

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_runtime::PriorityOrder;
use celery_runtime::{Broker, Queue, conformance};
use test_servers::RabbitServer;

/// A new virtual host, and the type of its queues.
struct Setup {
    url: String,
    quorum: bool,
}

impl Setup {
    fn classic() -> Self {
        Self {
            url: RabbitServer::shared().fresh_url(),
            quorum: false,
        }
    }

    fn quorum() -> Self {
        Self {
            quorum: true,
            ..Self::classic()
        }
    }
}

impl conformance::broker::BrokerSetup for Setup {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(AmqpBroker::new(AmqpOptions::parse(&self.url).unwrap()))
    }

    fn queue(&self, name: &str) -> Queue {
        if self.quorum {
            Queue::new(name).quorum()
        } else {
            Queue::new(name)
        }
    }

    fn priority_queue(&self, name: &str) -> Queue {
        if self.quorum {
            self.queue(name)
        } else {
            self.queue(name).max_priority(9)
        }
    }

    fn requeues_at_once(&self) -> bool {
        !self.quorum
    }

    fn priorities(&self) -> PriorityOrder {
        if self.quorum {
            PriorityOrder::None
        } else {
            PriorityOrder::HighestFirst
        }
    }

    fn delivered_priorities(&self) -> [u8; 4] {
        match (self.quorum, RabbitServer::shared().major_version()) {
            (false, _) => [9, 6, 3, 0],
            (true, ..4) => [9, 0, 3, 6],
            // Two priorities, above 4 and other ones, in the ratio of two to one.
            (true, 4..) => [9, 6, 0, 3],
        }
    }

    fn counts_deliveries(&self) -> bool {
        self.quorum
    }
}

mod classic {
    use celery_runtime::broker_conformance;

    use super::Setup;

    broker_conformance!(
        ignore = "needs rabbitmq-server; run cargo xtask test",
        Setup::classic()
    );
}

mod quorum {
    use celery_runtime::broker_conformance;

    use super::Setup;

    broker_conformance!(
        ignore = "needs rabbitmq-server; run cargo xtask test",
        Setup::quorum()
    );
}

#[cfg(feature = "rpc")]
mod rpc {
    use std::sync::Arc;

    use celery_broker_amqp::RpcBackend;
    use celery_runtime::conformance::broker::BrokerSetup as _;
    use celery_runtime::{ResultBackend, backend_conformance, conformance};

    use super::Setup;

    impl conformance::backend::BackendSetup for Setup {
        fn backend(&self) -> Arc<dyn ResultBackend> {
            Arc::new(RpcBackend::new(self.broker()))
        }
    }

    backend_conformance!(
        ignore = "needs rabbitmq-server; run cargo xtask test",
        Setup::classic()
    );
}
