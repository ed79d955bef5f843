//! Durable revocations, kept in the [`Store`] for workers that start later.

use std::time::Duration;

use crate::boundary::{ServiceError, Store};

/// The mark of a task that was revoked for good.
pub(crate) fn revoked_key(id: &str) -> String {
    format!("revoked-{id}")
}

/// Writes down that these tasks are revoked, for workers that are away.
pub(crate) async fn store_revocations(
    store: &dyn Store,
    ids: &[String],
    remembered: Duration,
) -> Result<(), ServiceError> {
    for id in ids {
        store
            .put_if_absent(&revoked_key(id), b"1", remembered)
            .await?;
    }
    Ok(())
}
