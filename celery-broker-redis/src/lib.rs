//! The Redis broker of Celery for Rust.
//!
//! [`RedisBroker`] uses the queues of kombu's Redis transport: the same keys,
//! envelopes and unacked entries. Python and Rust workers share queues, and
//! either restores the deliveries of a dead worker of the other kind. Most
//! programs use the crate `celery`, which builds the broker from a URL.
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
//! println!("{} messages", broker.depth(&Queue::new("celery")).await?);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does, and what it does not
//!
//! - A message is fetched and recorded as unacked in one step on the server, so
//!   it is in a key at all times. A message that is not a valid envelope moves
//!   to the quarantine hash `<queue>.dead.raw` in a step of its own, and is
//!   delivered as malformed.
//! - Answers with messages are bounded: by 16 MiB, and by less after an answer
//!   did not arrive in time. A single message may take up to five minutes.
//! - A consumer waits on one connection for any number of queues: the server
//!   notifies it when a list has changed. On servers or proxies without
//!   `CLIENT TRACKING` it polls every 5 to 250 milliseconds.
//! - A worker renews the deliveries that it holds, so that neither a long task nor a
//!   long wait makes a message run twice. The deliveries of a worker of this crate that
//!   died are restored to their queues within 30 seconds (`rescue_after`, a transport
//!   option of this crate, 24 seconds; 0 turns it off), those of other workers after the
//!   visibility timeout, an hour unless the transport options say otherwise.
//! - It does not reconnect. A broken connection is a transient error; the caller
//!   then starts a new consumer, which can settle the deliveries of the old one.
//! - Redis Cluster is not supported, as it distributes a queue's keys over nodes.
//!
//! # What a crash of the server loses
//!
//! A server that writes every change to disk before it answers (`appendonly yes`
//! and `appendfsync always`) loses nothing that was published, fetched or
//! settled. With `everysec`, the usual setting, it loses up to a second of
//! changes: published messages, and acknowledgements, whose messages are then
//! delivered again. Without an append-only file it loses all changes since the
//! last snapshot, and a failover loses changes that the replica has not received.
//!
//! # Where to read on
//!
//! [`RedisBroker`] and [`RedisOptions`]; inside, `fetch` and its script take
//! messages, `settle` settles deliveries, `lease` renews them, `rescue` and
//! `restore` restore those of dead workers.
//!
//! # Features
//!
//! `tls-rustls` (rustls with ring) or `tls-native-tls` (the system's library),
//! for `rediss://`.
//!
#![doc = include_str!("permissions.md")]

/// Returns a script of this crate with the helpers that all scripts share.
macro_rules! script {
    ($file:literal) => {
        crate::client::Script::new(concat!(
            include_str!("../scripts/prelude.lua"),
            include_str!(concat!("../scripts/", $file))
        ))
    };
}

mod answer_budget;
mod binding;
mod broadcast;
mod broker;
#[doc(hidden)]
pub mod client;
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
mod lease;
mod publish;
mod recover;
mod renewal;
mod reply;
mod rescue;
mod restore;
mod return_deferred;
mod settle;
mod shared;
mod topic;
mod transport_options;
mod unconfirmed;
mod url;

pub use broker::RedisBroker;
pub use config::RedisOptions;
