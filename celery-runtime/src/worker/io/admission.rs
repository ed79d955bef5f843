//! Checks before a task starts: an earlier success in the result backend, a
//! durable revocation, and the lock of a unique task.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, State};
use tokio::task::JoinHandle;

use crate::boundary::{ServiceError, Store};
use crate::env;
use crate::execution::Job;
use crate::revocation::revoked_key;
use crate::task::{Conflict, LockPeriod, Unique, take_lock};
use crate::worker::delivery::event::{Admission, AdmissionChecks, EffectError};

/// Runs the checks, and acquires the lock of a unique task that may start.
///
/// The lock is the second value; it is held until it is dropped.
pub(crate) async fn check(
    job: Arc<Job>,
    lock_key: Option<String>,
    checks: AdmissionChecks,
) -> Result<(Admission, Option<UniqueLock>), EffectError> {
    let checked = run_checks(&job, lock_key, checks).await;
    checked.map_err(|error| {
        tracing::warn!("{error}");
        EffectError::from(&error)
    })
}

async fn run_checks(
    job: &Arc<Job>,
    lock_key: Option<String>,
    checks: AdmissionChecks,
) -> Result<(Admission, Option<UniqueLock>), ServiceError> {
    if checks.success
        && let Some(value) = earlier_success(job).await?
    {
        tracing::info!("task {} has succeeded before; not running it again", job.id);
        return Ok((Admission::Succeeded(value), None));
    }
    let Some(store) = job.services.store.clone() else {
        return Ok((Admission::Start, None));
    };
    if checks.revoked && store.get(&revoked_key(&job.id)).await?.is_some() {
        tracing::info!("task {} is revoked", job.id);
        return Ok((Admission::Revoked, None));
    }
    match (checks.unique, lock_key) {
        (Some(unique), Some(key)) => acquire(store, key, job, unique).await,
        _ => Ok((Admission::Start, None)),
    }
}

/// Returns the stored result if the task has succeeded before.
async fn earlier_success(job: &Job) -> Result<Option<Raw<'static>>, ServiceError> {
    let Some(backend) = job.services.backend.as_deref() else {
        return Ok(None);
    };
    let found = backend.fetch(std::slice::from_ref(&job.id)).await?;
    let mut found = found.into_iter().flatten();
    let success = found.find(|document| document.status == State::Success);
    Ok(success.map(|document| document.result))
}

async fn acquire(
    store: Arc<dyn Store>,
    key: String,
    job: &Job,
    unique: Unique,
) -> Result<(Admission, Option<UniqueLock>), ServiceError> {
    let backend = job.services.backend.as_deref();
    let holder = take_lock(&*store, backend, &key, &job.id, unique).await?;
    if holder.is_some() {
        return Ok((Admission::Taken(unique.conflict), None));
    }
    let lock = UniqueLock::new(store, key, job.id.clone(), unique);
    Ok((Admission::Start, Some(lock)))
}

/// The lock of a running unique task, renewed while it is held. Dropping it
/// releases the lock, unless the lock is for a fixed period.
#[derive(Debug)]
pub(crate) struct UniqueLock {
    store: Arc<dyn Store>,
    key: String,
    holder: String,
    /// Renews the lock; `None` if the lock is not bound to the run.
    renewal: Option<JoinHandle<()>>,
    outlives_task: bool,
}

impl UniqueLock {
    fn new(store: Arc<dyn Store>, key: String, holder: String, unique: Unique) -> Self {
        let renewal = matches!(unique.span, LockPeriod::Running).then(|| {
            let renewing = renew_periodically(
                Arc::clone(&store),
                key.clone(),
                holder.clone(),
                unique.lease,
            );
            env::spawn(renewing)
        });
        Self {
            store,
            key,
            holder,
            renewal,
            outlives_task: matches!(unique.span, LockPeriod::Period(_)),
        }
    }
}

/// Extends the lock every third of its lease, so that one failed attempt
/// does not lose it.
async fn renew_periodically(store: Arc<dyn Store>, key: String, holder: String, lease: Duration) {
    loop {
        tokio::time::sleep(lease / 3).await;
        match store.extend(&key, holder.as_bytes(), lease).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("task {holder}: unique lock {key} lost while the task is running");
                return;
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

impl Drop for UniqueLock {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        if self.outlives_task {
            return;
        }
        let (store, key) = (Arc::clone(&self.store), std::mem::take(&mut self.key));
        let holder = std::mem::take(&mut self.holder);
        // If this fails, the lock expires with its lease.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            env::spawn_on(&runtime, async move {
                if let Err(error) = store.compare_and_delete(&key, holder.as_bytes()).await {
                    tracing::warn!("{error}");
                }
            });
        }
    }
}

impl Conflict {
    /// The reason in the result and in the event of a task that is not run
    /// because another one holds its lock.
    pub(crate) const REASON: &'static str = "another task holds its unique lock";
}
