//! From canvases to sent messages.

use celery_protocol::ResultTree;
use tokio::time::Instant;

use crate::boundary::{
    ChordStart, Publication, ServiceError, ServiceErrorKind, no_chords, polls_chords,
};
use crate::canvas::{Canvas, IdSource, Plan, PlanContext, PlannedTask, plan};
use crate::client::compose::{ComposeError, compose_letter};
use crate::client::{Client, ClientInner, Composed, SendError, UniqueCheck, no_answer};
use crate::env;

/// A canvas whose messages are written.
pub(crate) struct Planned {
    /// What errors call it.
    name: String,
    composed: Vec<Composed>,
    chords: Vec<ChordStart>,
    later_chords: Vec<String>,
    result: ResultTree,
    children: Vec<ResultTree>,
}

/// A canvas that was sent.
pub(crate) struct Sent {
    pub(crate) result: ResultTree,
    /// The results of what was sent now.
    pub(crate) children: Vec<ResultTree>,
}

/// A canvas whose messages are in the batch, or that needs none.
struct Batched {
    /// Of each message the task's id and name, and the lock taken for it.
    letters: Vec<(String, String, Option<String>)>,
    sent: Sent,
}

impl Client {
    /// Gives ids to a canvas and writes what it begins with.
    pub(crate) fn plan(&self, canvas: Canvas, within: &PlanContext) -> Result<Planned, SendError> {
        let name = canvas.task().to_owned();
        let ids = IdSource {
            fresh: &mut || env::uuid(),
            reply_to: &self.inner.sender.reply_to,
            chords: Vec::new(),
            wire_style: self.inner.sender.config.wire_style(),
        };
        let planned = canvas
            .taken_apart()
            .and_then(|canvas| plan(canvas, within, ids))
            .and_then(|planned| match self.polls_chords() {
                true => planned.unlocked_by_tasks(),
                false => Ok(planned),
            });
        let Plan {
            letters,
            chords,
            later_chords,
            result,
            children,
        } = planned.map_err(|error| match error.into_encode_error() {
            Ok(cause) => SendError::Encode {
                task: name.clone(),
                cause,
            },
            Err(cause) => SendError::Canvas {
                task: name.clone(),
                cause,
            },
        })?;
        let composed = letters.into_iter().map(|letter| self.compose(letter));
        Ok(Planned {
            composed: composed.collect::<Result<_, _>>()?,
            name,
            chords: chords.into_iter().map(|chord| chord.start).collect(),
            later_chords,
            result,
            children,
        })
    }

    /// Whether chords are looked after by a task, because the result backend does
    /// not count, but every worker can read it.
    fn polls_chords(&self) -> bool {
        let backend = self.inner.reader.backend.as_deref();
        backend.is_some_and(polls_chords)
    }

    fn compose(&self, letter: PlannedTask) -> Result<Composed, SendError> {
        let ClientInner { clock, sender, .. } = &*self.inner;
        let PlannedTask { call, options } = letter;
        let task = call.task.clone().into_owned();
        let ignores = options.ignore_result.or(call.ignore_result);
        let ignores = ignores.or(sender.config.task.ignore_result);
        match compose_letter(sender, &call, options, clock.now()) {
            Ok((id, publication)) => Ok(Composed {
                task,
                id,
                wants_result: !ignores.unwrap_or(false),
                unique: call.unique.clone(),
                publication,
            }),
            Err(ComposeError::Encode(cause)) => Err(SendError::Encode { task, cause }),
            Err(ComposeError::Queue(cause)) => Err(SendError::Queue { task, cause }),
        }
    }

    /// Sends all of it in one batch, once the result backend is ready. The
    /// answer has one entry for each canvas, in their order.
    pub(crate) async fn send_all(
        &self,
        planned: Vec<Result<Planned, SendError>>,
        until: Instant,
    ) -> Vec<Result<Sent, SendError>> {
        let planned = self.expected(planned).await;
        let mut batch = Vec::new();
        let mut batched = Vec::with_capacity(planned.len());
        for one in planned {
            batched.push(match one {
                Ok(planned) => self.batch(planned, &mut batch, until).await,
                Err(error) => Err(error),
            });
        }
        let mut answers = self.publish(&batch, until).await.into_iter();
        let mut publications = batch.iter();
        let mut told = Vec::new();
        let mut results = Vec::with_capacity(batched.len());
        for one in batched {
            let one = match one {
                Ok(one) => one,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let mut failed = None;
            for (id, task, lock) in one.letters {
                let publication = publications.next();
                match answers.next().unwrap_or_else(|| Err(no_answer())) {
                    Ok(()) => told.extend(publication),
                    Err(cause) => {
                        self.unlock(lock, &id).await;
                        failed.get_or_insert(SendError::Broker { task, cause });
                    }
                }
            }
            results.push(match failed {
                Some(error) => Err(error),
                None => Ok(one.sent),
            });
        }
        self.tell_sent(told, until).await;
        results
    }

    /// Puts the messages of a canvas into the batch, with the locks that they
    /// need taken and its chords begun.
    async fn batch(
        &self,
        planned: Planned,
        batch: &mut Vec<Publication>,
        until: Instant,
    ) -> Result<Batched, SendError> {
        let alone = planned.composed.len() == 1
            && planned
                .composed
                .iter()
                .all(|one| one.id == planned.result.id);
        let mut letters = Vec::with_capacity(planned.composed.len());
        let mut publications = Vec::with_capacity(planned.composed.len());
        let mut failed = None;
        for composed in planned.composed {
            let task = composed.task.clone();
            match self.lock(composed, until).await {
                Ok(UniqueCheck::Free(composed, lock)) => {
                    publications.push(composed.publication);
                    letters.push((composed.id, composed.task, lock));
                }
                // Another one stands for it.
                Ok(UniqueCheck::Taken(holder)) if alone => {
                    let result = ResultTree::task(holder);
                    let children = vec![result.clone()];
                    return Ok(Batched {
                        letters,
                        sent: Sent { result, children },
                    });
                }
                // But not for what comes after it.
                Ok(UniqueCheck::Taken(holder)) => {
                    failed = Some(SendError::NotUnique { task, holder });
                    break;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_none() {
            let begun = self.begin_chords(&planned.chords, &planned.later_chords);
            failed = begun.await.err().map(|cause| SendError::Chord {
                task: planned.name,
                cause,
            });
        }
        if let Some(error) = failed {
            for (id, _, lock) in letters {
                self.unlock(lock, &id).await;
            }
            return Err(error);
        }
        batch.append(&mut publications);
        Ok(Batched {
            letters,
            sent: Sent {
                result: planned.result,
                children: planned.children,
            },
        })
    }

    /// Tells the result backend how many parts the chords have. Those that
    /// start later are only looked at: no worker could finish them either.
    async fn begin_chords(
        &self,
        chords: &[ChordStart],
        later: &[String],
    ) -> Result<(), ServiceError> {
        let first = chords.first().map(|chord| chord.group_id.as_str());
        let Some(first) = first.or_else(|| later.first().map(String::as_str)) else {
            return Ok(());
        };
        let reader = &self.inner.reader;
        let Some(backend) = reader.backend.as_deref() else {
            return Err(no_backend(first));
        };
        if polls_chords(backend) {
            return Ok(());
        }
        let store = backend.chords().ok_or_else(|| no_chords("start", first))?;
        for chord in chords {
            reader.ask("start", || store.begin(chord)).await?;
        }
        Ok(())
    }

    /// What can be sent once the backend is ready for the results.
    async fn expected(
        &self,
        planned: Vec<Result<Planned, SendError>>,
    ) -> Vec<Result<Planned, SendError>> {
        let Some(backend) = self.inner.reader.backend.as_deref() else {
            return planned;
        };
        let wanted = planned.iter().flatten().flat_map(Planned::wanted);
        let ids: Vec<_> = wanted.map(str::to_owned).collect();
        if ids.is_empty() {
            return planned;
        }
        let expecting = self.inner.reader.ask("prepare", || backend.prepare(&ids));
        let Err(cause) = expecting.await else {
            return planned;
        };
        let refuse = |one: Planned| {
            if one.wanted().next().is_none() {
                return Ok(one);
            }
            Err(SendError::Backend {
                task: one.name,
                cause: cause.clone(),
            })
        };
        planned
            .into_iter()
            .map(|one| one.and_then(refuse))
            .collect()
    }
}

impl Planned {
    /// The ids whose results somebody may ask for: what is sent now, and what
    /// the whole returns.
    fn wanted(&self) -> impl Iterator<Item = &str> {
        let sent = self.composed.iter().filter(|one| one.wants_result);
        let sent = sent.map(|one| one.id.as_str());
        let last = (self.composed.len() != 1 || self.composed[0].id != self.result.id)
            .then_some(self.result.id.as_str());
        sent.chain(last)
    }
}

/// In Celery's words.
pub(crate) fn no_backend(group_id: &str) -> ServiceError {
    const CAUSE: &str = "Starting chords requires a result backend to be configured. Note that a \
        group chained with a task is also upgraded to be a chord, as this pattern requires \
        synchronization";
    let object = format!("chord {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, "start", object, CAUSE)
        .with_remedy("set result_backend to one that every worker can read, such as redis://")
}
