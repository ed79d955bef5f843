//! Does what workflows ask for: [`WorkflowEffect`]s.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::boundary::{
    BoxFuture, ChordEnd, ChordMember, ChordResults, ChordStore, MemberResult, Record,
    ResultBackend, ServiceError, no_chords,
};
use crate::client::no_backend;
use crate::env;
use crate::execution::{Job, RegistryEntry};
use crate::worker::delivery::event::{EffectError, Outcome};
use crate::worker::effects::executor::{EffectExecutor, EffectResult, done};
use crate::worker::effects::{documents, run_task};
use crate::worker::workflow::effect::{
    ClaimedChord, FinishedMember, InPlaceErrback, OutgoingBatch, SkippedTask, WorkflowEffect,
};

/// How long an errback may take that has no hard limit of its own.
const ERRBACK_LIMIT: Duration = Duration::from_secs(60);

/// A chord whose worker dies is not kept from the others for longer.
const LONGEST_HOLD: Duration = Duration::from_secs(600);

impl EffectExecutor {
    /// Does it, and says what has to be done next because of it.
    pub(crate) fn deed(self: &Arc<Self>, deed: WorkflowEffect) -> BoxFuture<'static, EffectResult> {
        match deed {
            WorkflowEffect::CompleteMember(part) => self.count(part),
            WorkflowEffect::JoinResults(chord, results) => self.join(chord, results),
            WorkflowEffect::Send(dispatch) => {
                let sending = self.send_off(&dispatch);
                self.telling(dispatch, sending)
            }
            WorkflowEffect::SendBody(chord, dispatch) => self.send_body(chord, dispatch),
            WorkflowEffect::StoreFailure(task) => self.fail(task),
            WorkflowEffect::CallErrback(callback) => self.call(&callback),
            WorkflowEffect::RenewClaim(chord, deeds) => self.hold(chord, deeds),
            WorkflowEffect::FinishChord(chord, end) => self.end(chord, end),
        }
    }

    pub(crate) fn count(
        self: &Arc<Self>,
        part: Arc<FinishedMember>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        let chord = Arc::clone(&part.chord);
        let counting = self.perform("count a part of", named(&chord), async move {
            let chords = this.chords("count a member of", &part.chord)?;
            let ClaimedChord {
                group_id,
                body,
                claim,
                ..
            } = &*part.chord;
            let told = ChordMember::new(group_id, &part.task_id, part.index, &part.result, body);
            let told = told.state(part.state.clone());
            let counted = chords.complete_member(&told, claim).await?;
            let join =
                |results| WorkflowEffect::JoinResults(Arc::clone(&part.chord), Arc::new(results));
            Ok(counted.map(join).into_iter().collect())
        });
        self.unless_unjoined(chord, counting)
    }

    /// Where the header has groups in it, the results of their tasks are read.
    pub(crate) fn join(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        results: Arc<ChordResults>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        let ours = Arc::clone(&chord);
        let joining = async move {
            let tree = results.tree.as_ref().filter(|_| chord.counted);
            let Some(tree) = tree else {
                return Ok(this.workflow(this.clock.now()).go_on(&chord, &results));
            };
            let ids: Vec<_> = tree.leaf_ids().into_iter().map(str::to_owned).collect();
            let parts = this.results(&chord, ids).await?;
            let workflow = this.workflow(this.clock.now());
            Ok(match parts {
                Some(parts) => {
                    let results = ChordResults::new(parts, Some(tree.clone()));
                    workflow.go_on(&chord, &results)
                }
                None => workflow.unjoined(&chord, "TimeoutError('The operation timed out.')"),
            })
        };
        self.unless_unjoined(ours, joining)
    }

    /// What can never be read fails the chord: nobody else could read it either.
    pub(crate) fn unless_unjoined(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        joining: impl Future<Output = EffectResult> + Send + 'static,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            match joining.await {
                Err(EffectError::Refused(cause)) if this.counts() => {
                    Ok(this.workflow(this.clock.now()).unjoined(&chord, &cause))
                }
                result => result,
            }
        })
    }

    pub(crate) fn counts(&self) -> bool {
        let backend = self.services.backend.as_deref();
        backend.is_some_and(|backend| backend.chords().is_some())
    }

    /// All results of these tasks, as soon as they are there. Each question has
    /// the deadline, and the whole wait the time that is set for it.
    pub(crate) async fn results(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        ids: Vec<String>,
    ) -> Result<Option<Vec<MemberResult>>, EffectError> {
        let until = self.join_timeout.map(|timeout| env::instant() + timeout);
        let (this, of, all) = (Arc::clone(self), Arc::clone(chord), ids.clone());
        let found = self.perform("read the results of", named(chord), async move {
            this.backend(&of)?.fetch(&all).await
        });
        let mut parts = Vec::with_capacity(ids.len());
        for (id, document) in ids.iter().zip(found.await?) {
            let document = match document.filter(|document| document.status.is_ready()) {
                Some(document) => document,
                None => {
                    let backend = self
                        .backend(chord)
                        .map_err(|error| EffectError::from(&error))?;
                    let waiting = backend.wait(id);
                    let waited = match until {
                        None => waiting.await,
                        Some(until) => match timeout_at(until, waiting).await {
                            Ok(waited) => waited,
                            Err(_) => return Ok(None),
                        },
                    };
                    waited.map_err(|error| EffectError::from(&error))?
                }
            };
            parts.push(MemberResult::new(id, document.status, document.result));
        }
        Ok(Some(parts))
    }

    pub(crate) fn send_body(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        dispatch: Arc<OutgoingBatch>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            if chord.counted && !this.is_held(&chord, this.deadline * 2).await? {
                return Ok(Vec::new());
            }
            let sending = this.send_off(&dispatch);
            match this.telling(dispatch, sending).await {
                Ok(_) if chord.counted => Ok(vec![WorkflowEffect::FinishChord(
                    chord,
                    ChordEnd::Continued,
                )]),
                Ok(_) => Ok(Vec::new()),
                Err(error @ (EffectError::NotSent | EffectError::Unknown)) => Err(error),
                Err(EffectError::Refused(cause)) => {
                    Ok(this.workflow(this.clock.now()).body_unsent(&chord, &cause))
                }
            }
        })
    }

    /// Errbacks may take their time.
    pub(crate) fn hold(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        deeds: Arc<[WorkflowEffect]>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let each = deeds.iter().map(|deed| match deed {
                WorkflowEffect::CallErrback(callback) => this.errback_limit(callback),
                _ => this.deadline,
            });
            let all: Duration = each.sum();
            let held = this.is_held(&chord, all.min(LONGEST_HOLD)).await?;
            Ok(if held { deeds.to_vec() } else { Vec::new() })
        })
    }

    /// Whether a chord is ours for so much longer than its claim ttl anyway.
    pub(crate) async fn is_held(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        longer: Duration,
    ) -> Result<bool, EffectError> {
        let (this, of) = (Arc::clone(self), Arc::clone(chord));
        let held = self.perform("hold", named(chord), async move {
            let mut claim = of.claim.clone();
            claim.ttl += longer;
            let chords = this.chords("renew the claim of", &of)?;
            chords.renew_claim(&of.group_id, &claim).await
        });
        let held = held.await?;
        if !held {
            let group_id = &chord.group_id;
            tracing::warn!("chord {group_id}: another worker goes on with it");
        }
        Ok(held)
    }

    pub(crate) fn errback_limit(&self, callback: &InPlaceErrback) -> Duration {
        let task = self.services.registry.find(&callback.signature.task);
        let declared = task.and_then(|task| task.declaration.options.time_limit);
        declared.unwrap_or(ERRBACK_LIMIT)
    }

    pub(crate) fn fail(&self, task: Arc<SkippedTask>) -> BoxFuture<'static, EffectResult> {
        let services = Arc::clone(&self.services);
        let object = format!("the result of task {}", task.id);
        let now = self.clock.now();
        self.perform("store", object, async move {
            let Some(backend) = services.backend.as_deref() else {
                return Ok(Vec::new());
            };
            let document = documents::doomed(&task, &services, now);
            let record = Record::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
            backend.store(record).await?;
            Ok(Vec::new())
        })
    }

    /// What it raises is only told. It runs beside the tasks, as one of its own,
    /// and no longer than its hard limit.
    pub(crate) fn call(&self, callback: &InPlaceErrback) -> BoxFuture<'static, EffectResult> {
        let InPlaceErrback { signature, failure } = callback;
        let Some(registered) = self.services.registry.find(&signature.task) else {
            return done(Ok(Vec::new()));
        };
        let RegistryEntry { run, name, .. } = registered;
        let services = Arc::clone(&self.services);
        let args = match registered.is_errback() || signature.immutable {
            true => Ok(signature.args.clone()),
            false => failure.prepend_to(&signature.args),
        };
        let note = Some(Arc::clone(failure));
        let (id, task) = (&failure.id, Arc::clone(name));
        let job =
            args.and_then(|args| Job::in_place(services, id, task, &args, &signature.kwargs, note));
        let (run, name, id) = (Arc::clone(run), Arc::clone(name), failure.id.clone());
        let limit = self.errback_limit(callback);
        Box::pin(async move {
            let job = match job {
                Ok(job) => job,
                Err(error) => {
                    tracing::error!("errback {name} of task {id} is not called: {error}");
                    return Ok(Vec::new());
                }
            };
            // Ended with the set.
            let mut running = JoinSet::new();
            env::spawn_in(&mut running, run_task::run(run, Arc::new(job)));
            let Ok(ended) = tokio::time::timeout(limit, running.join_next()).await else {
                tracing::error!("errback {name} of task {id} is ended after {limit:?}");
                return Ok(Vec::new());
            };
            let Some(Ok(outcome)) = ended else {
                return Ok(Vec::new());
            };
            match outcome {
                Outcome::Value(_) => {}
                Outcome::Error { error, .. } => {
                    tracing::error!("errback {name} of task {id} failed: {error}");
                }
                Outcome::Panic(message) => {
                    tracing::error!("errback {name} of task {id} panicked: {message}");
                }
                Outcome::Lost(loss) => {
                    tracing::error!("errback {name} of task {id}: {}", loss.message);
                }
            }
            Ok(Vec::new())
        })
    }

    pub(crate) fn end(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        end: ChordEnd,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        self.perform("end", named(&chord), async move {
            let chords = this.chords("finish", &chord)?;
            let ended = chords.finish(&chord.group_id, &chord.claim, end).await?;
            if !ended {
                let group_id = &chord.group_id;
                tracing::warn!("chord {group_id}: its claim had ended before it was through");
            }
            Ok(Vec::new())
        })
    }

    pub(crate) fn chords(
        &self,
        operation: &'static str,
        chord: &ClaimedChord,
    ) -> Result<&dyn ChordStore, ServiceError> {
        let chords = self.backend(chord)?.chords();
        chords.ok_or_else(|| no_chords(operation, &chord.group_id))
    }

    pub(crate) fn backend(&self, chord: &ClaimedChord) -> Result<&dyn ResultBackend, ServiceError> {
        let backend = self.services.backend.as_deref();
        backend.ok_or_else(|| no_backend(&chord.group_id))
    }
}

fn named(chord: &ClaimedChord) -> String {
    format!("chord {}", chord.group_id)
}
