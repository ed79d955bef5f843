//! Carries out [`WorkflowEffect`]s. Called by the driver, and by the sweeper for
//! stalled chords.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::boundary::{
    BoxFuture, ChordEnd, ChordMember, ChordResults, ChordStore, MemberResult, ResultBackend,
    ResultRecord, ServiceError, no_chords,
};
use crate::client::no_backend;
use crate::env;
use crate::execution::{ErasedTask, Job, RegistryEntry};
use crate::worker::delivery::event::{EffectError, Outcome};
use crate::worker::effects::executor::{EffectExecutor, EffectResult, ready};
use crate::worker::effects::{documents, run_task};
use crate::worker::workflow::effect::{
    ClaimedChord, FinishedMember, InPlaceErrback, OutgoingBatch, SkippedTask, WorkflowEffect,
};

/// The timeout of an errback whose task has no hard time limit.
const ERRBACK_TIMEOUT: Duration = Duration::from_secs(60);

/// The maximum time by which a renewal extends a claim: if the worker dies, no other
/// worker can continue the chord before the claim expires.
const MAX_RENEWAL: Duration = Duration::from_secs(600);

impl EffectExecutor {
    /// Carries out an effect and returns the effects that it leads to.
    pub(crate) fn perform(
        self: &Arc<Self>,
        effect: WorkflowEffect,
    ) -> BoxFuture<'static, EffectResult> {
        match effect {
            WorkflowEffect::CompleteMember(member) => self.complete_member(member),
            WorkflowEffect::JoinResults(chord, results) => self.join_results(chord, results),
            WorkflowEffect::Send(batch) => self.publish_tasks(batch),
            WorkflowEffect::SendBody(chord, batch) => self.send_body(chord, batch),
            WorkflowEffect::StoreFailure(task) => self.store_failure(task),
            WorkflowEffect::CallErrback(errback) => self.call_errback(&errback),
            WorkflowEffect::RenewClaim(chord, effects) => self.renew_before(chord, effects),
            WorkflowEffect::FinishChord(chord, end) => self.finish_chord(chord, end),
        }
    }

    fn complete_member(
        self: &Arc<Self>,
        member: Arc<FinishedMember>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        let chord = Arc::clone(&member.chord);
        let completing = self.with_timeout("count a member of", chord_name(&chord), async move {
            let chords = this.chord_store("count a member of", &member.chord)?;
            let ClaimedChord {
                group_id,
                body,
                claim,
                ..
            } = &*member.chord;
            let finished = ChordMember::new(
                group_id,
                &member.task_id,
                member.index,
                &member.result,
                body,
            );
            let finished = finished.state(member.state.clone());
            let completed = chords.complete_member(&finished, claim).await?;
            let join =
                |results| WorkflowEffect::JoinResults(Arc::clone(&member.chord), Arc::new(results));
            Ok(completed.map(join).into_iter().collect())
        });
        self.or_fail_chord(chord, completing)
    }

    /// Continues a chord with the results of its header. If the header contains groups,
    /// reads the results of their tasks first.
    fn join_results(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        results: Arc<ChordResults>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        let joined = Arc::clone(&chord);
        let joining = async move {
            let tree = results.tree.as_ref().filter(|_| chord.counted);
            let Some(tree) = tree else {
                return Ok(this
                    .workflow(this.clock.now())
                    .continue_chord(&chord, &results));
            };
            let ids: Vec<_> = tree.leaf_ids().into_iter().map(str::to_owned).collect();
            let members = this.member_results(&chord, ids).await?;
            let workflow = this.workflow(this.clock.now());
            Ok(match members {
                Some(members) => {
                    let results = ChordResults::new(members, Some(tree.clone()));
                    workflow.continue_chord(&chord, &results)
                }
                None => workflow.fail_join(&chord, "TimeoutError('The operation timed out.')"),
            })
        };
        self.or_fail_chord(joined, joining)
    }

    /// Fails the chord if counting a member or joining the results fails permanently,
    /// since no other worker could do it either.
    fn or_fail_chord(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        joining: impl Future<Output = EffectResult> + Send + 'static,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            match joining.await {
                Err(EffectError::Refused(cause)) if this.has_chord_store() => {
                    Ok(this.workflow(this.clock.now()).fail_join(&chord, &cause))
                }
                result => result,
            }
        })
    }

    fn has_chord_store(&self) -> bool {
        let backend = self.context.backend.as_deref();
        backend.is_some_and(|backend| backend.chords().is_some())
    }

    /// Waits for the results of these tasks. Returns `None` when they are not ready
    /// within the join timeout.
    async fn member_results(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        ids: Vec<String>,
    ) -> Result<Option<Vec<MemberResult>>, EffectError> {
        let until = self.join_timeout.map(|timeout| env::instant() + timeout);
        let (this, owned, all) = (Arc::clone(self), Arc::clone(chord), ids.clone());
        let found = self.with_timeout("read the results of", chord_name(chord), async move {
            this.backend(&owned)?.fetch(&all).await
        });
        let mut members = Vec::with_capacity(ids.len());
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
            members.push(MemberResult::new(id, document.status, document.result));
        }
        Ok(Some(members))
    }

    fn send_body(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        batch: Arc<OutgoingBatch>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            if chord.counted && !this.renew_claim(&chord, this.deadline * 2).await? {
                return Ok(Vec::new());
            }
            match this.publish_tasks(batch).await {
                Ok(_) if chord.counted => Ok(vec![WorkflowEffect::FinishChord(
                    chord,
                    ChordEnd::Continued,
                )]),
                Ok(_) => Ok(Vec::new()),
                Err(error @ (EffectError::NotSent | EffectError::Unknown)) => Err(error),
                Err(EffectError::Refused(cause)) => {
                    Ok(this.workflow(this.clock.now()).fail_body(&chord, &cause))
                }
            }
        })
    }

    /// Renews the claim for the time that these effects may take, and returns them if
    /// this worker still holds it.
    fn renew_before(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        effects: Arc<[WorkflowEffect]>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let timeouts = effects.iter().map(|effect| match effect {
                WorkflowEffect::CallErrback(errback) => this.errback_timeout(errback),
                _ => this.deadline,
            });
            let total: Duration = timeouts.sum();
            let held = this.renew_claim(&chord, total.min(MAX_RENEWAL)).await?;
            Ok(if held { effects.to_vec() } else { Vec::new() })
        })
    }

    /// Renews the claim of a chord for `extra` more than its time to live. Returns
    /// `false` when another worker holds a claim.
    async fn renew_claim(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        extra: Duration,
    ) -> Result<bool, EffectError> {
        let (this, owned) = (Arc::clone(self), Arc::clone(chord));
        let held = self.with_timeout("renew the claim of", chord_name(chord), async move {
            let mut claim = owned.claim.clone();
            claim.ttl += extra;
            let chords = this.chord_store("renew the claim of", &owned)?;
            chords.renew_claim(&owned.group_id, &claim).await
        });
        let held = held.await?;
        if !held {
            let group_id = &chord.group_id;
            tracing::warn!("chord {group_id}: another worker has claimed it");
        }
        Ok(held)
    }

    fn errback_timeout(&self, errback: &InPlaceErrback) -> Duration {
        let task = self.context.registry.find(&errback.signature.task);
        let declared = task.and_then(|task| task.declaration.options.time_limit);
        declared.unwrap_or(ERRBACK_TIMEOUT)
    }

    fn store_failure(&self, task: Arc<SkippedTask>) -> BoxFuture<'static, EffectResult> {
        let context = Arc::clone(&self.context);
        let object = format!("the result of task {}", task.id);
        let now = self.clock.now();
        self.with_timeout("store", object, async move {
            let Some(backend) = context.backend.as_deref() else {
                return Ok(Vec::new());
            };
            let document = documents::skipped(&task, &context, now);
            let record =
                ResultRecord::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
            backend.store(record).await?;
            Ok(Vec::new())
        })
    }

    /// Calls an errback. It runs in a task of its own, outside of the slots, at most for
    /// its hard time limit. Its failure is only logged.
    fn call_errback(&self, errback: &InPlaceErrback) -> BoxFuture<'static, EffectResult> {
        let InPlaceErrback { signature, failure } = errback;
        let Some(registered) = self.context.registry.find(&signature.task) else {
            return ready(Ok(Vec::new()));
        };
        let RegistryEntry { run, name, .. } = registered;
        let context = Arc::clone(&self.context);
        let args = if registered.is_errback() || signature.immutable {
            Ok(signature.args.clone())
        } else {
            failure.prepend_to(&signature.args)
        };
        let context_of_failure = Some(Arc::clone(failure));
        let (id, task) = (&failure.id, Arc::clone(name));
        let job = args.and_then(|args| {
            Job::in_place(
                context,
                id,
                task,
                &args,
                &signature.kwargs,
                context_of_failure,
            )
        });
        let (run, name, id) = (Arc::clone(run), Arc::clone(name), failure.id.clone());
        let limit = self.errback_timeout(errback);
        Box::pin(async move {
            let job = match job {
                Ok(job) => job,
                Err(error) => {
                    tracing::error!("cannot call errback {name} of task {id}: {error}");
                    return Ok(Vec::new());
                }
            };
            run_errback(run, Arc::new(job), &name, &id, limit).await;
            Ok(Vec::new())
        })
    }

    fn finish_chord(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        end: ChordEnd,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        self.with_timeout("finish", chord_name(&chord), async move {
            let chords = this.chord_store("finish", &chord)?;
            let finished = chords.finish(&chord.group_id, &chord.claim, end).await?;
            if !finished {
                let group_id = &chord.group_id;
                tracing::warn!("chord {group_id}: its claim expired before it was finished");
            }
            Ok(Vec::new())
        })
    }

    fn chord_store(
        &self,
        operation: &'static str,
        chord: &ClaimedChord,
    ) -> Result<&dyn ChordStore, ServiceError> {
        let chords = self.backend(chord)?.chords();
        chords.ok_or_else(|| no_chords(operation, &chord.group_id))
    }

    fn backend(&self, chord: &ClaimedChord) -> Result<&dyn ResultBackend, ServiceError> {
        let backend = self.context.backend.as_deref();
        backend.ok_or_else(|| no_backend(&chord.group_id))
    }
}

fn chord_name(chord: &ClaimedChord) -> String {
    format!("chord {}", chord.group_id)
}

/// Runs an errback and logs its failure.
async fn run_errback(
    run: Arc<dyn ErasedTask>,
    job: Arc<Job>,
    name: &str,
    id: &str,
    limit: Duration,
) {
    // Dropping the set aborts the errback.
    let mut running = JoinSet::new();
    env::spawn_in(&mut running, run_task::run(run, job));
    let Ok(ended) = tokio::time::timeout(limit, running.join_next()).await else {
        return tracing::error!("errback {name} of task {id} is aborted after {limit:?}");
    };
    let Some(Ok(outcome)) = ended else { return };
    match outcome {
        Outcome::Value(_) => {}
        Outcome::Error { error, .. } => {
            tracing::error!("errback {name} of task {id} failed: {error}");
        }
        Outcome::Panic(message) => {
            tracing::error!("errback {name} of task {id} panicked: {message}");
        }
        Outcome::Lost(lost) => {
            tracing::error!("errback {name} of task {id}: {}", lost.message);
        }
    }
}
