//! Goes on with chords that another worker has left behind: [`Sweeper`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, State, WireSignature};
use tokio::task::AbortHandle;

use crate::boundary::{ChordClaim, ChordEnd, ResultBackend, ServiceError, StalledChord};
use crate::canvas::options::CallOptions;
use crate::env;
use crate::worker::delivery::event::EffectError;
use crate::worker::effects::executor::EffectExecutor;
use crate::worker::workflow::effect::{ClaimedChord, TaskRequest, WorkflowEffect};

/// Between two looks, on the average; each worker waits for another time.
const EVERY: Duration = Duration::from_secs(5);

/// Chords taken over at a time: each is gone on with before its claim ends.
const AT_ONCE: usize = 16;

/// Looks for such chords as long as it lives.
#[derive(Debug)]
pub(crate) struct Sweeper(AbortHandle);

impl Sweeper {
    /// Nothing where the result backend does not count.
    pub(crate) fn start(executor: &Arc<EffectExecutor>) -> Option<Self> {
        let backend = executor.services.backend.clone()?;
        backend.chords()?;
        let executor = Arc::clone(executor);
        let sweeping = env::spawn(async move {
            loop {
                tokio::time::sleep(EVERY.mul_f64(0.5 + env::random())).await;
                sweep(&executor, &*backend).await;
            }
        });
        Some(Self(sweeping.abort_handle()))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn sweep(executor: &Arc<EffectExecutor>, backend: &dyn ResultBackend) {
    let token = env::uuid_simple();
    let claim = ChordClaim::new(token, executor.claim_ttl());
    let Some(chords) = backend.chords() else {
        return;
    };
    let overdue = match chords.claim_stalled(&claim, AT_ONCE).await {
        Ok(overdue) => overdue,
        Err(error) => return tracing::debug!("{error}"),
    };
    for chord in overdue {
        tracing::warn!("chord {} was left behind, and goes on here", chord.group_id);
        go_on(executor, backend, &claim, chord).await;
    }
}

/// What does not succeed now is found again when the claim has ended.
async fn go_on(
    executor: &Arc<EffectExecutor>,
    backend: &dyn ResultBackend,
    claim: &ChordClaim,
    overdue: StalledChord,
) {
    let StalledChord {
        group_id,
        body,
        results,
        ..
    } = overdue;
    let last = results.members.last().map(|part| part.task_id.clone());
    let found = match body_state(backend, &body).await {
        Ok(found) => found,
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
        // Nobody knows any more which task was the last one.
        sender: Arc::new(TaskRequest {
            id: last.unwrap_or_default(),
            stores: true,
            ..TaskRequest::default()
        }),
        counted: true,
        told: found.is_ready(),
    });
    // Sent, and through; or failed with its header, and what fails with it may be
    // left to do.
    let first = match found.is_ready() && !is_failing {
        true => WorkflowEffect::FinishChord(chord, ChordEnd::Continued),
        false => WorkflowEffect::JoinResults(chord, Arc::new(results)),
    };
    let mut deeds = VecDeque::from([first]);
    while let Some(deed) = deeds.pop_front() {
        match executor.deed(deed).await {
            Ok(more) => more
                .into_iter()
                .rev()
                .for_each(|deed| deeds.push_front(deed)),
            Err(EffectError::NotSent | EffectError::Unknown) => return,
            Err(EffectError::Refused(cause)) => tracing::error!("a chord goes on without: {cause}"),
        }
    }
}

/// What is known of the body.
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
