//! Resumes chords whose worker died before it sent the body: [`ChordSweeper`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, State, WireSignature};

use crate::boundary::{ChordClaim, ChordEnd, ResultBackend, ServiceError, StalledChord};
use crate::canvas::options::CallOptions;
use crate::env::{self, AbortOnDrop};
use crate::worker::delivery::event::EffectError;
use crate::worker::effects::executor::EffectExecutor;
use crate::worker::workflow::effect::{ClaimedChord, TaskRequest, WorkflowEffect};

/// Mean time between two sweeps. Each pause is a random one between half and one
/// and a half of it, so that workers do not sweep at the same time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Mean time until the next sweep after the backend has refused one permanently.
const REFUSED_SWEEP_INTERVAL: Duration = Duration::from_secs(300);

/// Most chords that are claimed by one sweep, so that each can be resumed before
/// its claim expires.
const SWEEP_BATCH: usize = 16;

/// Periodically claims and resumes stalled chords until it is dropped.
#[derive(Debug)]
pub(crate) struct ChordSweeper {
    _task: AbortOnDrop,
}

impl ChordSweeper {
    /// Starts the sweeper; `None` if the result backend stores no chords.
    pub(crate) fn start(executor: &Arc<EffectExecutor>) -> Option<Self> {
        let backend = executor.context.backend.clone()?;
        backend.chords()?;
        let executor = Arc::clone(executor);
        let sweeping = env::spawn(async move {
            let mut interval = SWEEP_INTERVAL;
            loop {
                tokio::time::sleep(interval.mul_f64(0.5 + env::random())).await;
                interval = match sweep(&executor, &*backend).await {
                    Err(error) if !error.is_transient() => {
                        tracing::warn!("{error}; stalled chords are not resumed");
                        REFUSED_SWEEP_INTERVAL
                    }
                    Err(error) => {
                        tracing::debug!("{error}");
                        SWEEP_INTERVAL
                    }
                    Ok(()) => SWEEP_INTERVAL,
                };
            }
        });
        Some(Self {
            _task: sweeping.into(),
        })
    }
}

async fn sweep(
    executor: &Arc<EffectExecutor>,
    backend: &dyn ResultBackend,
) -> Result<(), ServiceError> {
    let token = env::uuid_simple();
    let claim = ChordClaim::new(token, executor.claim_ttl());
    let Some(chords) = backend.chords() else {
        return Ok(());
    };
    for chord in chords.claim_stalled(&claim, SWEEP_BATCH).await? {
        tracing::warn!("resuming stalled chord {}", chord.group_id);
        resume(executor, backend, &claim, chord).await;
    }
    Ok(())
}

/// Runs the remaining effects of a chord. After a transient failure, a later
/// sweep claims the chord again once this claim has expired.
async fn resume(
    executor: &Arc<EffectExecutor>,
    backend: &dyn ResultBackend,
    claim: &ChordClaim,
    stalled: StalledChord,
) {
    let StalledChord {
        group_id,
        body,
        results,
        ..
    } = stalled;
    let last = results.members.last().map(|member| member.task_id.clone());
    let body_state = match body_state(backend, &body).await {
        Ok(state) => state,
        Err(error) => return tracing::warn!("{error}"),
    };
    let is_failing = results
        .members
        .iter()
        .any(|part| part.state != State::Success);
    let chord = Arc::new(ClaimedChord {
        group_id,
        body,
        claim: claim.clone(),
        // The stored results do not say which member finished last.
        sender: Arc::new(TaskRequest {
            id: last.unwrap_or_default(),
            stores_failures: true,
            ..TaskRequest::default()
        }),
        counted: true,
        errbacks_called: body_state.is_ready(),
    });
    // A body that has ended was sent, so that the chord only has to be removed. If
    // a member failed, the body was failed with it, and the tasks that depend on
    // the body may still have to be failed.
    let first = if body_state.is_ready() && !is_failing {
        WorkflowEffect::FinishChord(chord, ChordEnd::Continued)
    } else {
        WorkflowEffect::JoinResults(chord, Arc::new(results))
    };
    let mut effects = VecDeque::from([first]);
    while let Some(effect) = effects.pop_front() {
        match executor.perform(effect).await {
            Ok(more) => more
                .into_iter()
                .rev()
                .for_each(|effect| effects.push_front(effect)),
            Err(EffectError::NotSent | EffectError::Unknown) => return,
            Err(EffectError::Refused(cause)) => {
                tracing::error!("chord step failed permanently: {cause}");
            }
        }
    }
}

/// Returns the stored state of the chord's body, `PENDING` if it is unknown.
async fn body_state(backend: &dyn ResultBackend, body: &Raw<'_>) -> Result<State, ServiceError> {
    let body = WireSignature::read(body).ok();
    let options = body.and_then(|body| CallOptions::from_wire(&body.options).ok());
    let Some(id) = options.and_then(|options| options.task_id) else {
        return Ok(State::Pending);
    };
    let found = backend.fetch(&[id]).await?;
    let document = found.into_iter().next().flatten();
    Ok(document.map_or(State::Pending, |document| document.status))
}
