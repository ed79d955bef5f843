//! Names by which the types of this crate recognise its readers and writers.
//!
//! serde's data model has no integers beyond 128 bits, no typed values of
//! kombu and no undecoded spans. Where such a value meets a reader or writer of
//! this crate, it is wrapped in a newtype struct with one of these names, and
//! the content tells the rest. No Rust type can have such a name, so nothing
//! from outside is mistaken for one.

/// Asks a reader for a [`Value`](crate::Value), nothing lost.
pub(crate) const VALUE: &str = "$celery::Value";

/// Asks a reader for the span of the next value as a [`Raw`](crate::Raw).
pub(crate) const RAW: &str = "$celery::Raw";

/// Hands a writer a JSON text.
pub(crate) const RAW_JSON: &str = "$celery::RawJson";

/// Hands a writer one value in msgpack.
pub(crate) const RAW_MSGPACK: &str = "$celery::RawMsgPack";

/// Hands a writer the digits of an integer.
pub(crate) const BIG_INT: &str = "$celery::BigInt";

/// The first byte of every name, to tell them from others quickly.
const TOKEN_PREFIX: u8 = b'$';

/// Whether a newtype struct with this name may be one of ours.
#[inline]
pub(crate) fn is_token(name: &str) -> bool {
    name.as_bytes().first() == Some(&TOKEN_PREFIX)
}

/// What a reader delivers through `visit_enum` when it was asked for
/// [`VALUE`] or [`RAW`] and the data model has no method for it. The index
/// travels as `u64`, which no foreign format uses to name a variant.
pub(crate) mod tag {
    /// The digits of an integer beyond 64 bits.
    pub(crate) const BIG_INT: u64 = 0;
    /// The text of a JSON value.
    pub(crate) const RAW_JSON: u64 = 1;
    /// The text of an extended value; its kind's place in the table is added.
    pub(crate) const EXTENDED: u64 = 16;
}
