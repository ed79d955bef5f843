//! The boundaries to brokers, result backends and stores: traits and the values
//! that they exchange.
//!
//! The files of this folder import the protocol, the standard library and
//! [`env`](crate::env) (for random names), and nothing else of this crate.

mod backend;
mod broker;
mod chord;
mod consumer;
mod error;
mod queue;
mod store;
mod topic;

use std::future::Future;
use std::pin::Pin;

pub use backend::{BackendCapabilities, ResultBackend, ResultRecord};
pub use broker::{Broker, BrokerCapabilities, PriorityOrder, Publication, Subscription};
pub use chord::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, ChordStore, MemberResult,
    StalledChord,
};
pub use consumer::{
    ConsumeOptions, Consumer, Content, Delivery, DeliveryOwner, DeliveryTag, QueueEnd, Settled,
    Settlement,
};
pub use error::{ServiceError, ServiceErrorKind};
pub(crate) use queue::DEAD_SUFFIX;
pub use queue::{Binding, Exchange, ExchangeKind, Mailbox, Queue};
pub use store::Store;
pub use topic::topic_matches;

pub(crate) use backend::{no_chords, polls_chords};

/// A boxed future, the return type of every asynchronous method of a boundary.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
