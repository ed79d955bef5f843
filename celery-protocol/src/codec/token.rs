//! Newtype names by which the types, readers and writers of this crate
//! recognise each other.
//!
//! serde's data model has no integers beyond 128 bits, no typed values of kombu
//! and no undecoded spans. These are called special values here. To pass one to
//! a reader or writer of this crate, its type wraps it in a newtype struct with
//! one of these names; the content of the newtype is the value. The names
//! contain a `$`, which no name of a Rust type does, so a foreign newtype is
//! never mistaken for a special value.

/// Requests a lossless [`Value`](crate::Value) from a reader.
pub(crate) const VALUE: &str = "$celery::Value";

/// Requests the span of the next value from a reader, as a [`Raw`](crate::Raw).
pub(crate) const RAW: &str = "$celery::Raw";

/// Passes a JSON text to a writer.
pub(crate) const RAW_JSON: &str = "$celery::RawJson";

/// Passes one msgpack value to a writer.
pub(crate) const RAW_MSGPACK: &str = "$celery::RawMsgPack";

/// Passes the digits of an integer to a writer.
pub(crate) const BIG_INT: &str = "$celery::BigInt";

/// The first byte of every token name, which makes the check for one cheap.
const TOKEN_PREFIX: u8 = b'$';

/// Returns whether the name of a newtype struct may be a token of this crate.
#[inline]
pub(crate) fn is_token(name: &str) -> bool {
    name.as_bytes().first() == Some(&TOKEN_PREFIX)
}

/// Variant indices with which a reader passes a special value to `visit_enum`,
/// when the type requested [`VALUE`] or [`RAW`] and serde has no visitor method
/// for the value. The index is a `u64`, which no foreign format uses to
/// identify a variant.
pub(crate) mod tag {
    /// The digits of an integer beyond 64 bits.
    pub(crate) const BIG_INT: u64 = 0;
    /// The text of a JSON value.
    pub(crate) const RAW_JSON: u64 = 1;
    /// The text of an extended value. The index of its kind is added to this
    /// number.
    pub(crate) const EXTENDED: u64 = 16;
}
