//! The RabbitMQ broker of Celery for Rust, and the rpc result backend.
//!
//! [`AmqpBroker`] declares, sends and consumes exactly as kombu's AMQP
//! transport does, so that Python and Rust share queues, classic and quorum
//! ones. Most programs use the crate `celery`, which makes the broker from a URL.
//!
//! ```no_run
//! use celery_broker_amqp::{AmqpBroker, AmqpOptions};
//! use celery_runtime::{Broker, Queue};
//!
//! # async fn example() -> Result<(), celery_runtime::ServiceError> {
//! let options = AmqpOptions::parse("amqp://guest:guest@localhost/shop")?;
//! let broker = AmqpBroker::new(options);
//! println!("{} waiting", broker.depth(&Queue::new("celery")).await?);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does, and what it does not
//!
//! - A send is `Ok` when RabbitMQ has the message in a queue: publishing is
//!   confirmed and mandatory unless the transport option `confirm_publish` is
//!   off. Messages of a batch are on their way together, and a message that no
//!   queue would get is an error that names exchange and routing key.
//! - A message whose time has not come does not stay with the worker. It waits
//!   in the broker, in the queues of Celery's native delayed delivery, whatever
//!   the type of its own queue, and comes back on a binding of our own.
//! - The prefetch is per consumer, which classic and quorum queues both know.
//!   With a prefetch of 0 nothing is pushed that was not asked for.
//! - It does not reconnect. A broken connection is an error that says whether
//!   it may pass; whoever consumes makes a new consumer. RabbitMQ gives
//!   everything that the old one held to somebody again.
//!
//! # Long tasks that are acknowledged late
//!
//! RabbitMQ closes a channel on which a delivery stays unacknowledged for
//! longer than its `consumer_timeout` (30 minutes unless configured), and
//! delivers all messages of that channel again. The worker survives that: it
//! says so in its log, opens a new channel, and keeps running what it runs.
//! A delivery that comes back to it belongs to the task that still runs and is
//! acknowledged with it; one that comes to another worker runs there a second
//! time. Where tasks take so long, raise `consumer_timeout`, or acknowledge
//! them early.
//!
//! # Quorum queues with a delivery limit
//!
//! A message that a stopping worker gives back counts as delivered. Quorum
//! queues with a `x-delivery-limit` (RabbitMQ 4 sets 20 by itself) drop or
//! dead-letter a message that was given back so often: set a dead-letter
//! exchange, or a higher limit, where workers restart that often. Messages
//! that wait for their time are sent anew and do not count.
//!
//! # Delayed messages in quorum queues
//!
//! The queues in which messages wait for whole seconds are quorum queues unless
//! `broker_native_delayed_delivery_queue_type` says `classic`, as in Celery;
//! those for the tenths of a second are always classic. Quorum queues pass a
//! message on only when the next queue has confirmed it, so that none is lost on
//! the way, and RabbitMQ does that for few messages at a time: a thousand that
//! are due at the same moment take seconds to come back. Classic ones are quicker
//! and may lose what is on its way when the server is killed.
//!
//! # Where to read on
//!
//! [`AmqpBroker`] and [`AmqpOptions`]; inside, `publish` sends, `consumer` and
//! `settle` take and end deliveries, `delay` lets messages wait in the broker,
//! `topology` declares.
//!
//! # Features
//!
//! `rpc` for the result backend; `tls-rustls` (rustls with ring) or
//! `tls-native-tls` (the system's library), for `amqps://`.

mod broker;
mod channel_pool;
mod confirm_channel;
mod connection;
mod connection_manager;
mod consumer;
mod declaration_cache;
mod declarer;
mod delay;
mod error;
mod message;
mod options;
mod publish;
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
