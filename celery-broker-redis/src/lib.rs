//! scratch
mod config;
#[doc(hidden)]
pub mod link;
mod transport;
pub use config::RedisOptions;
