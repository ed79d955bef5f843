//! The boundary to state that all workers and clients share: [`Store`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::BoxFuture;
use super::error::ServiceError;

/// A shared key-value store in which every key expires: locks and marks of
/// workers and clients.
///
/// Unique tasks and durable revocation use it.
///
/// # Contract
///
/// Each method is one atomic step, also for several clients of one key. All may
/// be called concurrently.
///
/// # Errors
///
/// All methods fail with a [`ServiceError`]: a
/// [transient](ServiceError::is_transient) one without a connection or an answer,
/// [`Invalid`](crate::ServiceErrorKind::Invalid) for a counter that holds no number.
///
/// # Cancel safety
///
/// All futures may be dropped at any time; the step may or may not have been
/// carried out.
pub trait Store: fmt::Debug + Send + Sync {
    /// Sets `key` to `value` for `ttl` unless the key exists. Returns whether it was
    /// set.
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Deletes `key` if it holds `value`. Returns whether it was deleted.
    fn compare_and_delete<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Sets the time to live of `key` to `ttl` from now if it holds `value`. Returns
    /// whether it was set.
    fn extend<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>>;

    /// Returns the value of `key`, if it exists.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, ServiceError>>;

    /// Adds one to the counter `key` and returns the new count. The counter expires
    /// `ttl` after its first count.
    fn count<'a>(&'a self, key: &'a str, ttl: Duration)
    -> BoxFuture<'a, Result<u64, ServiceError>>;
}
