//! What is asked before a task starts: whether it has succeeded before, was
//! revoked while nobody listened, or has to be the only one.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, State};
use tokio::task::JoinHandle;

use crate::boundary::{ServiceError, Store};
use crate::env;
use crate::execution::Job;
use crate::revocation::revoked_key;
use crate::task::{Conflict, Span, Unique};
use crate::worker::delivery::event::{Admission, AdmissionChecks, EffectError};

/// Asks, and takes the lock of a task that may start and has to be alone.
pub(crate) async fn ask(
    job: Arc<Job>,
    lock_key: Option<String>,
    checks: AdmissionChecks,
) -> Result<(Admission, Option<UniqueLock>), EffectError> {
    let answered = ask_all(&job, lock_key, checks).await;
    answered.map_err(|error| {
        tracing::warn!("{error}");
        EffectError::from(&error)
    })
}

async fn ask_all(
    job: &Arc<Job>,
    lock_key: Option<String>,
    checks: AdmissionChecks,
) -> Result<(Admission, Option<UniqueLock>), ServiceError> {
    if checks.success
        && let Some(value) = earlier_success(job).await?
    {
        tracing::info!(
            "task {} has succeeded before and does not run again",
            job.id
        );
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
        (Some(unique), Some(key)) => take(store, key, job, unique).await,
        _ => Ok((Admission::Start, None)),
    }
}

/// What it returned when it succeeded before, if it did.
async fn earlier_success(job: &Job) -> Result<Option<Raw<'static>>, ServiceError> {
    let Some(backend) = job.services.backend.as_deref() else {
        return Ok(None);
    };
    let found = backend.fetch(std::slice::from_ref(&job.id)).await?;
    let mut found = found.into_iter().flatten();
    let success = found.find(|document| document.status == State::Success);
    Ok(success.map(|document| document.result))
}

async fn take(
    store: Arc<dyn Store>,
    key: String,
    job: &Job,
    unique: Unique,
) -> Result<(Admission, Option<UniqueLock>), ServiceError> {
    let holder = job.id.as_bytes();
    let ttl = unique.first_ttl();
    let taken = store.put_if_absent(&key, holder, ttl).await?;
    // Ours already: taken when it was sent, or before it was delivered again.
    let is_ours = !taken
        && store
            .get(&key)
            .await?
            .is_some_and(|other| *other == *holder);
    if !taken && !is_ours {
        return Ok((Admission::Taken(unique.conflict), None));
    }
    let lock = UniqueLock::hold(store, key, job.id.clone(), unique);
    Ok((Admission::Start, Some(lock)))
}

/// The lock of a running task: renewed while it is held, given up when it is
/// dropped, unless it is for a period.
#[derive(Debug)]
pub(crate) struct UniqueLock {
    store: Arc<dyn Store>,
    key: String,
    holder: String,
    keeper: Option<JoinHandle<()>>,
    outlives_task: bool,
}

impl UniqueLock {
    fn hold(store: Arc<dyn Store>, key: String, holder: String, unique: Unique) -> Self {
        let keeper = matches!(unique.span, Span::Running).then(|| {
            let renewing = renew(
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
            keeper,
            outlives_task: matches!(unique.span, Span::Period(_)),
        }
    }
}

/// Three chances for each lease.
async fn renew(store: Arc<dyn Store>, key: String, holder: String, lease: Duration) {
    loop {
        tokio::time::sleep(lease / 3).await;
        match store.extend(&key, holder.as_bytes(), lease).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("task {holder} runs on without its lock {key}, which is gone");
                return;
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

impl Drop for UniqueLock {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
        if self.outlives_task {
            return;
        }
        let (store, key) = (Arc::clone(&self.store), std::mem::take(&mut self.key));
        let holder = std::mem::take(&mut self.holder);
        // Where this fails, the lock goes with its lease.
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
    /// What the second task is told.
    pub(crate) const REASON: &'static str = "another one is there already";
}
