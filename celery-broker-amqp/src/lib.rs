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
//! - Publishing is confirmed unless the transport option `confirm_publish` is off:
//!   `Ok` means that RabbitMQ has the message in a queue. Tasks are published as
//!   mandatory: one that reaches no queue is an error that names its exchange and
//!   routing key. Events, broadcasts and results of `rpc://` are not.
//! - A message that is not due yet does not stay with the worker. It waits in the
//!   queues of Celery's native delayed delivery, whatever the type of its own
//!   queue, and then in the due queue of that queue: see below.
//! - The prefetch applies to each consumer, which both classic and quorum queues
//!   support: to each queue and to its due queue. With a prefetch of 0, RabbitMQ
//!   pushes only what was requested.
//! - The broker does not reconnect a consumer. A broken connection is an error
//!   that says whether it is transient, and the worker starts a new consumer.
//!   RabbitMQ redelivers the unsettled deliveries of the old one.
//!
//! # Sending
//!
//! The messages of all calls share one channel and are in flight together; a call
//! returns when its own messages are confirmed. A queue is declared when RabbitMQ
//! returns the first message for it, once for all calls that wait for it.
//!
//! RabbitMQ closes a channel on which it refuses a message: because the exchange does
//! not exist or the user must not write to it, because the message is larger than
//! `max_message_size`, or, rarely, because of one of its properties. The other messages in
//! flight on the channel fail in doubt then. After a refused exchange or size this does
//! not happen again: later messages like the refused one have a channel of their own.
//!
//! A queue that confirms nothing, for example a quorum queue without a majority, makes
//! RabbitMQ stop reading from the whole connection after some hundred messages. A
//! message that is not confirmed within a second therefore makes its queue slow: until
//! it confirms a message, 16 are in flight for it, on a channel of their own. If nothing
//! is confirmed on the connection, it is probed, and replaced if it does not answer
//! within a second. Messages for other queues that are under way at that moment may stay
//! unconfirmed; later ones do not notice.
//!
//! # Channels and connections
//!
//! A worker has one connection for publishing and one for everything else, with 4
//! channels: for its queues, for control commands, for publishing, and for declarations.
//! A user limit of 4 (`rabbitmqctl set_user_limits`) is enough for its normal operation.
//! There is one more channel for each exchange that is not known to exist (for 5
//! seconds), for each slow queue (at most 9), while queues are added to a worker whose
//! tasks run, and for a check of a silent connection during a declaration. If the limit is
//! exceeded, RabbitMQ closes the connection, and the worker connects again: allow 8 channels
//! where possible.
//!
//! # Logs
//!
//! lapin logs each returned message with its body at WARN, and each channel that the
//! server closes at ERROR, under its own target. Returned messages are part of the
//! normal operation (see above), and the errors that matter are reported by this crate:
//! exclude the target with a filter such as `info,lapin=off`.
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
//! with a limit below 20 all do, one for each queue. If workers restart often, declare
//! the queue with [`Queue::dead_letter`](celery_runtime::Queue::dead_letter), which keeps
//! such messages in `<queue>.dead`, or with a higher limit. Deferred messages are published again and
//! do not count. The delivery count that tasks see is the larger one of
//! `x-delivery-count` and `x-acquired-count`.
//!
//! # Delayed messages
//!
//! RabbitMQ drops a message that leaves a delay queue when the next queue refuses it.
//! A queue of tasks may be full (`x-max-length`), or deleted, when a message becomes
//! due. Therefore the delay queues do not return a message to the queue itself, but to
//! its due queue `celery_due.<queue>` (with a hash for a name over 180 bytes): durable,
//! classic, and without limits. Workers declare it when they start, and consume it beside
//! the queue. Its messages are deliveries of the queue, and one full queue does not hold
//! up the messages of another one. Arguments of existing queues do not change. A policy
//! that limits every queue must not match `celery_due.*`, or it drops due messages.
//!
//! - *Python workers do not read due queues.* While a queue has more consumers than its
//!   due queue, a worker moves due messages to the queue every 30 seconds
//!   ([`AmqpOptions::due_check_interval`]), and the last worker that reads a due queue
//!   moves them when it stops. A message is removed from the due queue after RabbitMQ has
//!   confirmed it in the other one. If the confirm is lost or takes longer than 5 seconds,
//!   it stays, and a copy of it may be in the queue; such a move is repeated at growing
//!   intervals.
//! - *What a queue does not accept stays in its due queue*, until a worker of this crate
//!   reads it. A queue that drops its oldest messages when it is full gets only as many
//!   as its declared arguments leave room for. A limit that only a policy sets is not
//!   known to the worker.
//! - *Nothing is moved* with `confirm_publish` off, while RabbitMQ blocks publishing, when
//!   the last worker is killed, or when messages become due after it has stopped. They
//!   wait in `celery_due.<queue>` until a worker of this crate starts.
//! - *A deleted queue leaves `celery_due.<queue>`* with the messages that were or became
//!   due. A new worker of the queue runs them. Delete both to discard them; purging or
//!   counting the queue does not include its due queue. Only the due queue of a queue with
//!   `x-expires` expires, like the queue. An auto-delete queue has no due queue: its
//!   deferred messages return to it directly, and are dropped if it is full or deleted.
//! - *A worker that may not declare due queues* logs a warning. Its deferred messages wait
//!   in the worker and count towards its prefetch. The same applies while a due queue
//!   cannot be declared, for example because its node is down.
//!
//! *What a killed server loses* is what Celery's native delayed delivery loses, too. A
//! message is published to the delay queues with a confirm before its delivery is
//! acknowledged, and each queue is durable. The queues for whole seconds are quorum
//! queues, as in Celery, unless `broker_native_delayed_delivery_queue_type` is `classic`;
//! those for tenths of a second are always classic. A quorum queue dead-letters a message
//! to the next queue only when that queue has confirmed it, so that no message is lost, and
//! RabbitMQ does that for few messages at a time: a thousand messages that are due at the
//! same moment take seconds to return. Classic queues are faster, and may lose messages
//! that are moving between queues when the server is killed.
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
mod transient_channel;
mod transient_slot;

pub use broker::AmqpBroker;
pub use options::AmqpOptions;
#[cfg(feature = "rpc")]
pub use rpc::RpcBackend;
