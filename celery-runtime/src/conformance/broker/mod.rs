//! The cases for [`Broker`] with its [`Consumer`]s and
//! [`Subscription`](crate::Subscription)s: [`broker_conformance!`].
//!
//! [`broker_conformance!`]: crate::broker_conformance

pub mod consume;
pub mod mailbox;
pub mod publish;
pub mod settle;

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::{Headers, Message, Properties, TaskHeaders};

use crate::boundary::{
    Broker, ConsumeOptions, Consumer, Content, Delivery, PriorityOrder, Publication, Queue,
    Settled, Settlement,
};
use crate::conformance::wait_for;

/// A broker under test, and the properties of its queues.
///
/// Only [`broker`](Self::broker) is required. The other methods describe queues
/// that differ from [`Broker::capabilities`], such as the quorum
/// queues of RabbitMQ.
pub trait BrokerSetup: Send + Sync {
    /// Returns a new client of the same server.
    fn broker(&self) -> Arc<dyn Broker>;

    /// Returns a queue with this name, of the kind under test. Each case
    /// declares its queues with it. A [plain queue](Queue::new) by default.
    fn queue(&self, name: &str) -> Queue {
        Queue::new(name)
    }

    /// Returns a queue for messages with the priorities 0 to 9;
    /// [`queue`](Self::queue) by default.
    fn priority_queue(&self, name: &str) -> Queue {
        self.queue(name)
    }

    /// Returns whether a message that was requeued at the head is delivered by
    /// the very next fetch; `true` by default. A replicated queue may take a
    /// moment.
    fn requeues_at_once(&self) -> bool {
        true
    }

    /// Returns the order of priorities in [`priority_queue`](Self::priority_queue);
    /// by default that of the broker's capabilities.
    fn priorities(&self) -> PriorityOrder {
        self.broker().capabilities().priorities
    }

    /// Returns the order in which messages with the priorities 9, 0, 3 and 6, sent in
    /// this order, leave the [`priority_queue`](Self::priority_queue); by default that
    /// of [`priorities`](Self::priorities). A queue may know fewer priorities.
    fn delivered_priorities(&self) -> [u8; 4] {
        match self.priorities() {
            PriorityOrder::LowestFirst => [0, 3, 6, 9],
            PriorityOrder::HighestFirst => [9, 6, 3, 0],
            PriorityOrder::None => [9, 0, 3, 6],
        }
    }

    /// Returns whether deliveries from [`queue`](Self::queue) carry their
    /// [count](Delivery::delivery_count); by default as the broker's
    /// capabilities say. A broker may count on some kinds of queues only.
    fn counts_deliveries(&self) -> bool {
        self.broker().capabilities().counts_deliveries
    }
}

/// Makes a test of each case for a broker.
///
/// The argument is an expression that makes a
/// [`BrokerSetup`](crate::conformance::broker::BrokerSetup); each test evaluates
/// it. Cases of a capability that the broker does not declare pass without an
/// assertion.
///
/// ```
/// use std::sync::Arc;
///
/// use celery_runtime::Broker;
/// use celery_runtime::conformance::broker::BrokerSetup;
/// use celery_runtime::memory::MemoryBroker;
///
/// struct Setup(MemoryBroker);
///
/// impl BrokerSetup for Setup {
///     fn broker(&self) -> Arc<dyn Broker> {
///         Arc::new(self.0.clone())
///     }
/// }
///
/// celery_runtime::broker_conformance!(Setup(MemoryBroker::new()));
/// # fn main() {}
/// ```
///
/// Tests that need a server can be ignored by default, with a reason:
/// `broker_conformance!(ignore = "needs a server", Setup::start())`.
#[macro_export]
macro_rules! broker_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::conformance_tests!((broker::publish) $attributes $setup,
            published_messages_arrive_complete_in_order
            message_without_address_is_refused
            publication_with_queue_declares_queue
            publication_with_queue_declares_bindings
            batch_publish_answers_each_message
            exchange_routes_by_kind
            unroutable_message_is_refused
            repeated_declaration_changes_nothing
            depth_and_purge_count_waiting_messages
        );
        $crate::conformance_tests!((broker::consume) $attributes $setup,
            prefetched_messages_arrive_once_in_order
            changed_prefetch_loses_no_message
            receive_returns_at_most_max
            urgent_messages_are_delivered_first
            full_queue_does_not_starve_another
            interrupt_ends_pending_receive
            published_message_wakes_pending_receive
        );
        $crate::conformance_tests!((broker::settle) $attributes $setup,
            settled_messages_are_not_redelivered
            repeated_settlement_answers_gone
            requeue_at_head_is_delivered_next
            requeue_at_tail_is_delivered_last
            deferred_message_is_delivered_when_due
            close_returns_deferred_messages
            confirmed_settlement_answers_done
            settlement_after_reconnect_settles_old_delivery
            repetition_within_batch_answers_gone
            settlement_after_close_is_not_carried_out
            requeued_delivery_is_counted
            restored_message_is_delivered_once
        );
        $crate::conformance_tests!((broker::mailbox) $attributes $setup,
            broadcast_reaches_matching_subscribers
            named_mailbox_receives_replies
            direct_mailbox_receives_only_its_key
            unmatched_broadcast_is_dropped
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::broker_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::broker_conformance!(@cases [] $setup);
    };
}

/// Returns a message of the task `tasks.add` with this id.
fn message(id: &str) -> Message {
    let mut headers = TaskHeaders::new("tasks.add".to_owned(), id.to_owned());
    headers.argsrepr = Some("(2, 3)".into());
    let mut properties = Properties::default();
    properties.correlation_id = Some(id.to_owned());
    properties.priority = Some(0);
    Message::new(
        Headers::from_task(headers),
        properties,
        Bytes::from_static(b"[[2, 3], {}, {}]"),
    )
}

/// Returns the task id of a delivery.
fn id(delivery: &Delivery) -> String {
    match &delivery.content {
        Content::Message(message) => {
            let headers = message.headers.task().expect("readable headers");
            headers.expect("a task").id.into_owned()
        }
        Content::Malformed { error, .. } => panic!("delivered as malformed: {error}"),
    }
}

/// Publishes messages with these ids to a queue.
async fn publish(broker: &dyn Broker, queue: &Queue, ids: &[&str]) {
    let batch: Vec<_> = ids
        .iter()
        .map(|id| Publication::to_queue(message(id), queue.name.as_str()))
        .collect();
    for answer in wait_for("publish", broker.publish(&batch)).await {
        answer.expect("the broker takes the message");
    }
}

/// Starts a consumer without prefetch, so that counts of waiting messages are exact.
async fn consumer(broker: &dyn Broker, queues: &[&Queue]) -> Arc<dyn Consumer> {
    consumer_with_prefetch(broker, queues, 0).await
}

/// Declares the queues and starts a consumer with this prefetch.
async fn consumer_with_prefetch(
    broker: &dyn Broker,
    queues: &[&Queue],
    prefetch: u16,
) -> Arc<dyn Consumer> {
    for queue in queues {
        wait_for("declare", broker.declare(queue))
            .await
            .expect("declared");
    }
    let queues = queues.iter().map(|queue| (*queue).clone()).collect();
    let options = ConsumeOptions::new(queues, prefetch);
    wait_for("consume", broker.consume(&options))
        .await
        .expect("consuming")
}

/// Receives the next `count` deliveries.
async fn take(consumer: &dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let more = wait_for("receive", consumer.receive(count - taken.len())).await;
        let more = more.expect("received");
        assert!(!more.is_empty(), "an empty answer without an interrupt");
        taken.extend(more);
    }
    taken
}

/// Settles a batch and returns the outcomes.
async fn settle(consumer: &dyn Consumer, batch: &[Settlement]) -> Vec<Settled> {
    let settled = wait_for("settle", consumer.settle(batch)).await;
    assert_eq!(settled.len(), batch.len(), "one answer for each settlement");
    settled
        .into_iter()
        .map(|one| one.expect("settled"))
        .collect()
}

/// Returns the task ids of deliveries.
fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(id).collect()
}
