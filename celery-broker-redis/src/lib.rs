//! scratch
mod broker;
mod config;
mod consumer;
mod entry;
mod fanout;
mod fetch;
mod keys;
#[doc(hidden)]
pub mod link;
mod parked;
mod reply;
mod restore;
mod route;
mod settle;
mod topic;
mod transport;
mod wait;
pub use broker::RedisBroker;
pub use config::RedisOptions;
