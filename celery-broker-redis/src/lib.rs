//! The Redis broker of Celery for Rust.
//!
//! [`RedisBroker`] speaks to the queues of kombu's Redis transport: the same
//! keys, the same envelopes, the same bookkeeping. Python and Rust workers share
//! queues, and each gives on what a dead one of the other kind held. Most
//! programs use the crate `celery`, which makes the broker from a URL.
//!
//! ```no_run
//! use celery_broker_redis::{RedisBroker, RedisOptions};
//! use celery_runtime::{Broker, Queue};
//! use serde_json::json;
//!
//! # async fn example() -> Result<(), celery_runtime::ServiceError> {
//! let options = json!({"visibility_timeout": 600});
//! let options = options.as_object().expect("an object");
//! let options = RedisOptions::parse("redis://:secret@localhost/1", options)?;
//! let broker = RedisBroker::new(options);
//! println!("{} waiting", broker.depth(&Queue::new("celery")).await?);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does, and what it does not
//!
//! - A message is taken and noted as held in one step on the server, so there is
//!   no moment at which it is in no key. Garbage is set aside in the same step,
//!   in the hash `<queue>.dead.raw`, and delivered as malformed.
//! - A consumer waits on one connection, however many queues it has: the server
//!   tells it when a list has changed. Where a server or proxy cannot do that, it
//!   is asked every 5 to 250 milliseconds.
//! - What a worker holds when it dies is given to others after the visibility
//!   timeout, an hour unless the transport options say otherwise.
//! - It does not reconnect. A broken connection is an error that says whether it
//!   may pass; whoever consumes makes a new consumer, which settles what the old
//!   one took.
//! - Redis Cluster is not supported: a queue's keys lie on several nodes there.
//!
//! # What a crash of the server loses
//!
//! Nothing that was published, taken or settled is lost when the server is
//! killed and writes every change before it answers: `appendonly yes` and
//! `appendfsync always`. With `everysec`, Redis's usual setting, up to a second
//! of changes is gone: messages that were published then, and acknowledgements,
//! so that some messages come again. Without an append-only file everything
//! since the last snapshot is gone, and a failover to a replica loses what it
//! had not received yet.
//!
//! # Where to read on
//!
//! [`RedisBroker`] and [`RedisOptions`]; inside, `fetch` and its script take
//! messages, `settle` ends deliveries, `restore` gives on what dead workers held.
//!
//! # Features
//!
//! `tls-rustls` (rustls with ring) or `tls-native-tls` (the system's library),
//! for `rediss://`.

mod binding;
mod broadcast;
mod broker;
mod config;
mod consumer;
mod declare;
mod delayed;
mod delivery;
mod entry;
mod fanout;
mod fetch;
mod key_watcher;
mod keys;
#[doc(hidden)]
pub mod link;
mod publish;
mod recover;
mod reply;
mod restore;
mod settle;
mod shared;
mod topic;
mod transport_options;
mod unconfirmed;

pub use broker::RedisBroker;
pub use config::RedisOptions;
