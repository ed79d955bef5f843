//! Taking the lock of a unique task, by clients and workers: [`take_lock`].

use std::slice;

use crate::boundary::{ResultBackend, ServiceError, Store};
use crate::task::unique::{LockPeriod, Unique};

/// Takes the lock `key` for the task `id`. Returns the holder if it is another task.
///
/// Only a Rust worker releases the lock at the end of a task. The lock of a task that has ended in
/// a Python worker, or was revoked before it ran, is taken over.
pub(crate) async fn take_lock(
    store: &dyn Store,
    backend: Option<&dyn ResultBackend>,
    key: &str,
    id: &str,
    unique: Unique,
) -> Result<Option<String>, ServiceError> {
    let ends_with_task = matches!(unique.span, LockPeriod::Queued(_));
    loop {
        if store
            .put_if_absent(key, id.as_bytes(), unique.first_ttl())
            .await?
        {
            return Ok(None);
        }
        // Without a value the lock has been released in the meantime.
        let Some(value) = store.get(key).await? else {
            continue;
        };
        // The client has taken it while sending, or an earlier delivery of the message has.
        if *value == *id.as_bytes() {
            return Ok(None);
        }
        let holder = String::from_utf8_lossy(&value).into_owned();
        if !ends_with_task || !has_ended(backend, &holder).await? {
            return Ok(Some(holder));
        }
        tracing::info!(
            "task {id}: taking over unique lock {key} of task {holder}, which has ended"
        );
        store.compare_and_delete(key, &value).await?;
    }
}

/// Returns whether the result backend has a final state of a task.
async fn has_ended(backend: Option<&dyn ResultBackend>, id: &String) -> Result<bool, ServiceError> {
    let Some(backend) = backend.filter(|backend| backend.capabilities().shared) else {
        return Ok(false);
    };
    match backend.fetch(slice::from_ref(id)).await {
        Ok(found) => Ok(found.iter().flatten().any(|found| found.status.is_ready())),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => {
            tracing::warn!("{error}; its unique lock stays");
            Ok(false)
        }
    }
}
