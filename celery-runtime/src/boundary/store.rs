//! The boundary to what a fleet must agree on: [`Store`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::BoxFuture;
use super::error::ServiceError;

/// Small shared facts with a time to live: locks, leases, counters, marks.
///
/// Unique tasks, durable revocation, delivery caps and the scheduler's lease
/// build on it. Every key dies by itself; nothing here outlives its `ttl`.
///
/// # Contract
///
/// Each method is one atomic step, whoever else works on the same key. All
/// may be called concurrently, and their futures dropped at any time.
pub trait Store: fmt::Debug + Send + Sync {
    /// Sets `key` to `value` for `ttl` unless it exists; says whether it did.
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Deletes `key` if it holds `value`; says whether it did.
    fn compare_and_delete<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Lets `key` live for `ttl` from now if it holds `value`; says whether it did.
    fn extend<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// The value of `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, ServiceError>>;

    /// Adds one to the counter `key`, which dies `ttl` after its first count,
    /// and returns the new count.
    fn count<'a>(&'a self, key: &'a str, ttl: Duration)
    -> BoxFuture<'a, Result<u64, ServiceError>>;
}
