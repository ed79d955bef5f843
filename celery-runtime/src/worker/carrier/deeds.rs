//! Does what workflows ask for: [`Deed`]s.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::{Carried, Carrier, done};
use crate::backend::{ChordEnd, ChordPart, ChordResults, PartResult, Record, ResultBackend};
use crate::broker::BoxFuture;
use crate::client::no_backend;
use crate::error::ServiceError;
use crate::task::{Job, Registered};
use crate::worker::deed::{Callback, Chord, Deed, Dispatch, Doomed, Part};
use crate::worker::delivery::{Obstacle, Outcome};
use crate::worker::{pool, report};

impl Carrier {
    /// Does it, and says what has to be done next because of it.
    pub(crate) fn deed(self: &Arc<Self>, deed: Deed) -> BoxFuture<'static, Carried> {
        match deed {
            Deed::Count(part) => self.count(part),
            Deed::Join(chord, results) => self.join(chord, results),
            Deed::Send(dispatch) => self.send_off(&dispatch),
            Deed::Body(chord, dispatch) => self.send_body(chord, dispatch),
            Deed::Fail(task) => self.fail(task),
            Deed::Call(callback) => self.call(&callback),
            Deed::End(chord, end) => self.end(chord, end),
        }
    }

    fn count(self: &Arc<Self>, part: Arc<Part>) -> BoxFuture<'static, Carried> {
        let this = Arc::clone(self);
        self.perform("count a part of", named(&part.chord), async move {
            let backend = this.backend(&part.chord)?;
            let Chord {
                group_id,
                body,
                claim,
                ..
            } = &*part.chord;
            let told = ChordPart::new(group_id, &part.task_id, part.index, &part.result, body);
            let told = told.state(part.state.clone());
            let counted = backend.count_part(&told, claim).await?;
            let join = |results| Deed::Join(Arc::clone(&part.chord), Arc::new(results));
            Ok(counted.map(join).into_iter().collect())
        })
    }

    /// Where the header has groups in it, the results of their tasks are read.
    fn join(
        self: &Arc<Self>,
        chord: Arc<Chord>,
        results: Arc<ChordResults>,
    ) -> BoxFuture<'static, Carried> {
        let this = Arc::clone(self);
        self.perform("join the results of", named(&chord), async move {
            let tree = results.tree.as_ref().filter(|_| chord.counted);
            let Some(tree) = tree else {
                return Ok(this.workflow(this.clock.now()).go_on(&chord, &results));
            };
            let ids: Vec<_> = tree.leaf_ids().into_iter().map(str::to_owned).collect();
            let backend = this.backend(&chord)?;
            let parts = this.results(backend, &ids).await?;
            let workflow = this.workflow(this.clock.now());
            Ok(match parts {
                Some(parts) => {
                    let results = ChordResults::new(parts, Some(tree.clone()));
                    workflow.go_on(&chord, &results)
                }
                None => workflow.unjoined(&chord, "TimeoutError('The operation timed out.')"),
            })
        })
    }

    /// All results of these tasks, as soon as they are there.
    async fn results(
        &self,
        backend: &dyn ResultBackend,
        ids: &[String],
    ) -> Result<Option<Vec<PartResult>>, ServiceError> {
        let until = self.join_timeout.map(|timeout| Instant::now() + timeout);
        let mut parts = Vec::with_capacity(ids.len());
        for (id, document) in ids.iter().zip(backend.fetch(ids).await?) {
            let document = match document.filter(|document| document.status.is_ready()) {
                Some(document) => document,
                None => match until {
                    None => backend.wait(id).await?,
                    Some(until) => match timeout_at(until, backend.wait(id)).await {
                        Ok(document) => document?,
                        Err(_) => return Ok(None),
                    },
                },
            };
            parts.push(PartResult::new(id, document.status, document.result));
        }
        Ok(Some(parts))
    }

    fn send_body(
        self: &Arc<Self>,
        chord: Arc<Chord>,
        dispatch: Arc<Dispatch>,
    ) -> BoxFuture<'static, Carried> {
        let this = Arc::clone(self);
        Box::pin(async move {
            if chord.counted {
                // As long as sending may take, and once more.
                let mut claim = chord.claim.clone();
                claim.lasts += this.deadline * 2;
                let holding = Arc::clone(&this);
                let group = Arc::clone(&chord);
                let held = this.perform("hold", named(&chord), async move {
                    let backend = holding.backend(&group)?;
                    backend.hold_chord(&group.group_id, &claim).await
                });
                if !held.await? {
                    let group_id = &chord.group_id;
                    tracing::warn!("chord {group_id}: another worker goes on with it");
                    return Ok(Vec::new());
                }
            }
            match this.send_off(&dispatch).await {
                Ok(_) if chord.counted => Ok(vec![Deed::End(chord, ChordEnd::Continued)]),
                Ok(_) => Ok(Vec::new()),
                Err(Obstacle::Passing) => Err(Obstacle::Passing),
                Err(Obstacle::Lasting(cause)) => {
                    Ok(this.workflow(this.clock.now()).body_unsent(&chord, &cause))
                }
            }
        })
    }

    fn fail(&self, task: Arc<Doomed>) -> BoxFuture<'static, Carried> {
        let services = Arc::clone(&self.services);
        let object = format!("the result of task {}", task.id);
        let now = self.clock.now();
        self.perform("store", object, async move {
            let Some(backend) = services.backend.as_deref() else {
                return Ok(Vec::new());
            };
            let document = report::doomed(&task, &services, now);
            let record = Record::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
            backend.store(record).await?;
            Ok(Vec::new())
        })
    }

    /// What it raises is only told.
    fn call(&self, callback: &Callback) -> BoxFuture<'static, Carried> {
        let Callback { signature, failure } = callback;
        let Some(registered) = self.services.registry.find(&signature.task) else {
            return done(Ok(Vec::new()));
        };
        let Registered { run, name, .. } = registered;
        let services = Arc::clone(&self.services);
        let args = match registered.is_errback() || signature.immutable {
            true => Ok(signature.args.clone()),
            false => failure.before(&signature.args),
        };
        let note = Some(Arc::clone(failure));
        let (id, task) = (&failure.id, Arc::clone(name));
        let job =
            args.and_then(|args| Job::in_place(services, id, task, &args, &signature.kwargs, note));
        let (run, name, id) = (Arc::clone(run), Arc::clone(name), failure.id.clone());
        Box::pin(async move {
            let job = match job {
                Ok(job) => job,
                Err(error) => {
                    tracing::error!("errback {name} of task {id} is not called: {error}");
                    return Ok(Vec::new());
                }
            };
            match pool::run(run, Arc::new(job)).await {
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

    fn end(self: &Arc<Self>, chord: Arc<Chord>, end: ChordEnd) -> BoxFuture<'static, Carried> {
        let this = Arc::clone(self);
        self.perform("end", named(&chord), async move {
            let backend = this.backend(&chord)?;
            let ended = backend
                .end_chord(&chord.group_id, &chord.claim, end)
                .await?;
            if !ended {
                let group_id = &chord.group_id;
                tracing::warn!("chord {group_id}: its claim had ended before it was through");
            }
            Ok(Vec::new())
        })
    }

    fn backend(&self, chord: &Chord) -> Result<&dyn ResultBackend, ServiceError> {
        let backend = self.services.backend.as_deref();
        backend.ok_or_else(|| no_backend(&chord.group_id))
    }
}

fn named(chord: &Chord) -> String {
    format!("chord {}", chord.group_id)
}
