//! The RabbitMQ broker of Celery for Rust, and the rpc result backend.
//!
//! [`AmqpBroker`] declares, publishes and consumes exactly as kombu's AMQP
//! transport does, so that Python and Rust programs can share classic and quorum
//! queues. Most programs use the crate `celery`, which creates the broker from a
//! URL.
//!
//! ```no_run
//! use celery_broker_amqp::{AmqpBroker, AmqpOptions};
//! use celery_runtime::{Broker, Queue};
//!
//! # async fn example() -> Result<(), celery_runtime::ServiceError> {
//! let options = AmqpOptions::parse("amqp://guest:guest@localhost/shop")?;
//! let broker = AmqpBroker::new(options);
//! println!("{} ready messages", broker.depth(&Queue::new("celery")).await?);
//! # Ok(())
//! # }
//! ```
//!
//! # What the broker does, and what it does not
//!
//! - Publishing is confirmed and mandatory unless the transport option
//!   `confirm_publish` is off: `Ok` means that RabbitMQ has the message in a
//!   queue. The messages of a batch are in flight together. A message that
//!   reaches no queue is an error that names its exchange and routing key.
//! - A message that is not due yet does not stay with the worker. It waits in the
//!   queues of Celery's native delayed delivery, whatever the type of its own
//!   queue, and returns to that queue through a binding of this crate.
//! - The prefetch applies to each consumer, which both classic and quorum queues
//!   support. With a prefetch of 0, RabbitMQ pushes only what was requested.
//! - The broker does not reconnect a consumer. A broken connection is an error
//!   that says whether it is transient, and the worker starts a new consumer.
//!   RabbitMQ redelivers the unsettled deliveries of the old one.
//!
//! # Long tasks that are acknowledged late
//!
//! RabbitMQ closes a channel on which a delivery stays unacknowledged for longer
//! than its `consumer_timeout` (30 minutes by default), and redelivers all
//! messages of that channel. The worker survives that: it logs the error, opens a
//! new channel, and its tasks keep running. A delivery that comes back to the
//! same worker is assigned to the task that is still running and is acknowledged
//! with it. A delivery that goes to another worker runs there a second time. For
//! such tasks raise `consumer_timeout`, or acknowledge them early.
//!
//! # Quorum queues with a delivery limit
//!
//! RabbitMQ counts how often a message of a quorum queue was returned, and drops or
//! dead-letters it when it exceeds `x-delivery-limit` (20 by default since RabbitMQ
//! 4). A message counts as returned when a worker requeues it at its shutdown, when a
//! connection is lost, and with a prefetch of 0 when an idle worker gets more than it
//! has requested. Workers keep the number of the latter small: a message that was
//! returned twice stays with the worker that gets it, and on a queue that is declared
//! with a limit below 20 all do, one for each queue. If workers restart often, set a
//! dead-letter exchange or a higher limit. Deferred messages are published again and
//! do not count. The delivery count that tasks see is the larger one of
//! `x-delivery-count` and `x-acquired-count`.
//!
//! # Delayed messages in quorum queues
//!
//! The queues that hold messages for whole seconds are quorum queues, as in
//! Celery, unless `broker_native_delayed_delivery_queue_type` is `classic`. Those
//! for tenths of a second are always classic. A quorum queue dead-letters a
//! message to the next queue only when that queue has confirmed it, so that no
//! message is lost, and RabbitMQ does that for few messages at a time: a thousand
//! messages that are due at the same moment take seconds to return. Classic queues
//! are faster, and may lose messages that are moving between queues when the
//! server is killed.
//!
//! # Where to read on
//!
//! Start with [`AmqpBroker`] and [`AmqpOptions`]. Inside, `publish` publishes,
//! `consumer` receives and settles deliveries, `delay` routes deferred messages,
//! and `topology` and `declarer` declare exchanges, queues and bindings.
//!
//! # Features
//!
//! - `rpc`: the result backend.
//! - `tls-rustls` (rustls with ring) or `tls-native-tls` (the system's TLS
//!   library): `amqps://` URLs.

mod broker;
mod connection;
mod connection_manager;
mod consumer;
mod declaration_cache;
mod declarer;
mod delay;
mod error;
mod lanes;
mod message;
mod options;
mod publish;
mod queue_lookups;
#[cfg(feature = "rpc")]
mod rpc;
mod shared;
mod subscription;
mod sync;
mod table;
mod topology;

pub use broker::AmqpBroker;
pub use options::AmqpOptions;
#[cfg(feature = "rpc")]
pub use rpc::RpcBackend;
