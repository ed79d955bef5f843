//! Durable revocations, written to the [`Store`] for workers that start later.

use std::time::Duration;

use crate::boundary::{ServiceError, Store};

/// Returns the key that marks a task as revoked.
pub(crate) fn revoked_key(id: &str) -> String {
    format!("revoked-{id}")
}

/// Marks these tasks as revoked for this time, for workers that missed the command.
pub(crate) async fn store_revocations(
    store: &dyn Store,
    ids: &[String],
    ttl: Duration,
) -> Result<(), ServiceError> {
    for id in ids {
        store.put_if_absent(&revoked_key(id), b"1", ttl).await?;
    }
    Ok(())
}
