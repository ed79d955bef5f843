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
use crate::execution::{Job, Registered};
use crate::worker::delivery::event::{EffectError, Outcome};
use crate::worker::effects::executor::{EffectExecutor, EffectResult, ready};
use crate::worker::effects::{documents, run_task};
use crate::worker::workflow::effect::{
    ClaimedChord, FinishedMember, InPlaceErrback, OutgoingBatch, SkippedTask, WorkflowEffect,
};

/// How long an errback may take that has no hard limit of its own.
const ERRBACK_TIMEOUT: Duration = Duration::from_secs(60);

/// A chord whose worker dies is not kept from the others for longer.
const MAX_RENEWAL: Duration = Duration::from_secs(600);

impl EffectExecutor {
    /// Does it, and says what has to be ready next because of it.
    pub(crate) fn perform(
        self: &Arc<Self>,
        effect: WorkflowEffect,
    ) -> BoxFuture<'static, EffectResult> {
        match effect {
            WorkflowEffect::CompleteMember(member) => self.complete_member(member),
            WorkflowEffect::JoinResults(chord, results) => self.join_results(chord, results),
            WorkflowEffect::Send(batch) => {
                let sending = self.publish(&batch);
                self.publish_tasks(batch, sending)
            }
            WorkflowEffect::SendBody(chord, batch) => self.send_body(chord, batch),
            WorkflowEffect::StoreFailure(task) => self.store_failure(task),
            WorkflowEffect::CallErrback(errback) => self.call_errback(&errback),
            WorkflowEffect::RenewClaim(chord, effects) => self.renew_before(chord, effects),
            WorkflowEffect::FinishChord(chord, end) => self.finish_chord(chord, end),
        }
    }

    pub(crate) fn complete_member(
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
            let told = ChordMember::new(
                group_id,
                &member.task_id,
                member.index,
                &member.result,
                body,
            );
            let told = told.state(member.state.clone());
            let counted = chords.complete_member(&told, claim).await?;
            let join =
                |results| WorkflowEffect::JoinResults(Arc::clone(&member.chord), Arc::new(results));
            Ok(counted.map(join).into_iter().collect())
        });
        self.or_fail_chord(chord, completing)
    }

    /// Where the header has groups in it, the results of their tasks are read.
    pub(crate) fn join_results(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        results: Arc<ChordResults>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        let ours = Arc::clone(&chord);
        let joining = async move {
            let tree = results.tree.as_ref().filter(|_| chord.counted);
            let Some(tree) = tree else {
                return Ok(this
                    .workflow(this.clock.now())
                    .continue_chord(&chord, &results));
            };
            let ids: Vec<_> = tree.leaf_ids().into_iter().map(str::to_owned).collect();
            let parts = this.member_results(&chord, ids).await?;
            let workflow = this.workflow(this.clock.now());
            Ok(match parts {
                Some(parts) => {
                    let results = ChordResults::new(parts, Some(tree.clone()));
                    workflow.continue_chord(&chord, &results)
                }
                None => workflow.fail_join(&chord, "TimeoutError('The operation timed out.')"),
            })
        };
        self.or_fail_chord(ours, joining)
    }

    /// What can never be read fails the chord: nobody else could read it either.
    pub(crate) fn or_fail_chord(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        joining: impl Future<Output = EffectResult> + Send + 'static,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            match joining.await {
                Err(EffectError::Permanent(cause)) if this.has_chord_store() => {
                    Ok(this.workflow(this.clock.now()).fail_join(&chord, &cause))
                }
                result => result,
            }
        })
    }

    pub(crate) fn has_chord_store(&self) -> bool {
        let backend = self.context.backend.as_deref();
        backend.is_some_and(|backend| backend.chords().is_some())
    }

    /// All results of these tasks, as soon as they are there. Each question has
    /// the deadline, and the whole wait the time that is set for it.
    pub(crate) async fn member_results(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        ids: Vec<String>,
    ) -> Result<Option<Vec<MemberResult>>, EffectError> {
        let until = self.join_timeout.map(|timeout| env::instant() + timeout);
        let (this, of, all) = (Arc::clone(self), Arc::clone(chord), ids.clone());
        let found = self.with_timeout("read the results of", chord_name(chord), async move {
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
        batch: Arc<OutgoingBatch>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            if chord.counted && !this.renew_claim(&chord, this.deadline * 2).await? {
                return Ok(Vec::new());
            }
            let sending = this.publish(&batch);
            match this.publish_tasks(batch, sending).await {
                Ok(_) if chord.counted => Ok(vec![WorkflowEffect::FinishChord(
                    chord,
                    ChordEnd::Continued,
                )]),
                Ok(_) => Ok(Vec::new()),
                Err(error @ (EffectError::NotSent | EffectError::Unknown)) => Err(error),
                Err(EffectError::Permanent(cause)) => {
                    Ok(this.workflow(this.clock.now()).fail_body(&chord, &cause))
                }
            }
        })
    }

    /// Errbacks may take their time.
    pub(crate) fn renew_before(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        effects: Arc<[WorkflowEffect]>,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let each = effects.iter().map(|effect| match effect {
                WorkflowEffect::CallErrback(errback) => this.errback_timeout(errback),
                _ => this.deadline,
            });
            let all: Duration = each.sum();
            let held = this.renew_claim(&chord, all.min(MAX_RENEWAL)).await?;
            Ok(if held { effects.to_vec() } else { Vec::new() })
        })
    }

    /// Whether a chord is ours for so much longer than its claim ttl anyway.
    pub(crate) async fn renew_claim(
        self: &Arc<Self>,
        chord: &Arc<ClaimedChord>,
        longer: Duration,
    ) -> Result<bool, EffectError> {
        let (this, of) = (Arc::clone(self), Arc::clone(chord));
        let held = self.with_timeout("hold", chord_name(chord), async move {
            let mut claim = of.claim.clone();
            claim.ttl += longer;
            let chords = this.chord_store("renew the claim of", &of)?;
            chords.renew_claim(&of.group_id, &claim).await
        });
        let held = held.await?;
        if !held {
            let group_id = &chord.group_id;
            tracing::warn!("chord {group_id}: another worker goes on with it");
        }
        Ok(held)
    }

    pub(crate) fn errback_timeout(&self, errback: &InPlaceErrback) -> Duration {
        let task = self.context.registry.find(&errback.signature.task);
        let declared = task.and_then(|task| task.declaration.options.time_limit);
        declared.unwrap_or(ERRBACK_TIMEOUT)
    }

    pub(crate) fn store_failure(&self, task: Arc<SkippedTask>) -> BoxFuture<'static, EffectResult> {
        let context = Arc::clone(&self.context);
        let object = format!("the result of task {}", task.id);
        let now = self.clock.now();
        self.with_timeout("store", object, async move {
            let Some(backend) = context.backend.as_deref() else {
                return Ok(Vec::new());
            };
            let document = documents::skipped(&task, &context, now);
            let record = Record::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
            backend.store(record).await?;
            Ok(Vec::new())
        })
    }

    /// What it raises is only told. It runs beside the tasks, as one of its own,
    /// and no longer than its hard limit.
    pub(crate) fn call_errback(
        &self,
        errback: &InPlaceErrback,
    ) -> BoxFuture<'static, EffectResult> {
        let InPlaceErrback { signature, failure } = errback;
        let Some(registered) = self.context.registry.find(&signature.task) else {
            return ready(Ok(Vec::new()));
        };
        let Registered { run, name, .. } = registered;
        let context = Arc::clone(&self.context);
        let args = match registered.is_errback() || signature.immutable {
            true => Ok(signature.args.clone()),
            false => failure.before(&signature.args),
        };
        let note = Some(Arc::clone(failure));
        let (id, task) = (&failure.id, Arc::clone(name));
        let job =
            args.and_then(|args| Job::in_place(context, id, task, &args, &signature.kwargs, note));
        let (run, name, id) = (Arc::clone(run), Arc::clone(name), failure.id.clone());
        let limit = self.errback_timeout(errback);
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

    pub(crate) fn finish_chord(
        self: &Arc<Self>,
        chord: Arc<ClaimedChord>,
        end: ChordEnd,
    ) -> BoxFuture<'static, EffectResult> {
        let this = Arc::clone(self);
        self.with_timeout("end", chord_name(&chord), async move {
            let chords = this.chord_store("finish", &chord)?;
            let ended = chords.finish(&chord.group_id, &chord.claim, end).await?;
            if !ended {
                let group_id = &chord.group_id;
                tracing::warn!("chord {group_id}: its claim had ended before it was through");
            }
            Ok(Vec::new())
        })
    }

    pub(crate) fn chord_store(
        &self,
        operation: &'static str,
        chord: &ClaimedChord,
    ) -> Result<&dyn ChordStore, ServiceError> {
        let chords = self.backend(chord)?.chords();
        chords.ok_or_else(|| no_chords(operation, &chord.group_id))
    }

    pub(crate) fn backend(&self, chord: &ClaimedChord) -> Result<&dyn ResultBackend, ServiceError> {
        let backend = self.context.backend.as_deref();
        backend.ok_or_else(|| no_backend(&chord.group_id))
    }
}

fn chord_name(chord: &ClaimedChord) -> String {
    format!("chord {}", chord.group_id)
}
