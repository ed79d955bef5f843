//! Composing and publishing the messages of canvases.

use std::borrow::Cow;

use celery_protocol::ResultTree;
use tokio::time::Instant;

use crate::boundary::{
    BoxFuture, ChordStart, Publication, ServiceError, ServiceErrorKind, no_chords, polls_chords,
};
use crate::canvas::{Canvas, IdSource, Plan, PlanContext, plan};
use crate::client::compose::RoutedTask;
use crate::client::{
    BATCH_SIZE, Client, ClientInner, ComposedTask, SendError, UniqueCheck, no_answer,
};
use crate::env;

/// A canvas whose first tasks are known, with their destinations.
pub(crate) struct PlannedCanvas {
    /// The name in errors.
    name: String,
    tasks: Vec<RoutedTask>,
    chords: Vec<ChordStart>,
    later_chords: Vec<String>,
    result: ResultTree,
    children: Vec<ResultTree>,
}

/// A canvas whose messages are composed.
pub(crate) struct ComposedCanvas {
    /// The name in errors.
    name: String,
    tasks: Vec<ComposedTask>,
    chords: Vec<ChordStart>,
    later_chords: Vec<String>,
    result: ResultTree,
    children: Vec<ResultTree>,
}

/// A canvas that was sent.
pub(crate) struct SentCanvas {
    pub(crate) result: ResultTree,
    /// The results of the tasks that were sent now.
    pub(crate) children: Vec<ResultTree>,
}

/// A canvas whose messages are in the batch.
struct BatchedCanvas {
    messages: Vec<BatchedMessage>,
    sent: SentCanvas,
}

/// A message in the batch.
struct BatchedMessage {
    id: String,
    task: String,
    /// The key of the unique lock that the client has taken.
    lock: Option<String>,
}

impl BatchedCanvas {
    /// Creates the outcome of a task that is not sent because the unique instance `holder` exists.
    fn existing(holder: String) -> Self {
        let result = ResultTree::task(holder);
        Self {
            messages: Vec::new(),
            sent: SentCanvas {
                children: vec![result.clone()],
                result,
            },
        }
    }
}

impl Client {
    /// Assigns ids to a canvas and determines the tasks that start it.
    ///
    /// # Errors
    ///
    /// Fails if a part of the canvas is invalid, or if a queue must not be created.
    pub(crate) fn plan(
        &self,
        canvas: Canvas,
        context: &PlanContext,
    ) -> Result<PlannedCanvas, SendError> {
        let name = canvas.task().to_owned();
        let ids = IdSource {
            fresh: &mut || env::uuid(),
            reply_to: &self.inner.sender.reply_to,
            chords: Vec::new(),
            wire_style: self.inner.sender.config.wire_style(),
        };
        let planned = canvas
            .expand_chunks()
            .and_then(|canvas| plan(canvas, context, ids))
            .and_then(|plan| {
                if self.polls_chords() {
                    plan.with_unlock_tasks()
                } else {
                    Ok(plan)
                }
            });
        let Plan {
            tasks,
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
        // Collecting results allocates room for four tasks; most canvases have one.
        let mut routed = Vec::with_capacity(tasks.len());
        for task in tasks {
            let name = Cow::clone(&task.call.task);
            let task = RoutedTask::new(&self.inner.sender, task);
            routed.push(task.map_err(|cause| SendError::Queue {
                task: name.into_owned(),
                cause,
            })?);
        }
        Ok(PlannedCanvas {
            tasks: routed,
            name,
            chords: chords.into_iter().map(|chord| chord.start).collect(),
            later_chords,
            result,
            children,
        })
    }

    /// Composes the messages that start a canvas.
    ///
    /// # Errors
    ///
    /// Fails if an argument cannot be encoded.
    pub(crate) fn compose(&self, planned: PlannedCanvas) -> Result<ComposedCanvas, SendError> {
        let tasks = planned.tasks.into_iter();
        let tasks = tasks.map(|task| self.compose_task(task));
        Ok(ComposedCanvas {
            tasks: tasks.collect::<Result<_, _>>()?,
            name: planned.name,
            chords: planned.chords,
            later_chords: planned.later_chords,
            result: planned.result,
            children: planned.children,
        })
    }

    /// Returns whether a task polls the members of chords, because the result backend does not
    /// count them.
    fn polls_chords(&self) -> bool {
        let backend = self.inner.reader.backend.as_deref();
        backend.is_some_and(polls_chords)
    }

    fn compose_task(&self, routed: RoutedTask) -> Result<ComposedTask, SendError> {
        let ClientInner { clock, sender, .. } = &*self.inner;
        let call = &routed.call;
        let task = call.task.clone().into_owned();
        let ignore_result = routed
            .options
            .ignore_result
            .or(call.ignore_result)
            .or(sender.config.task.ignore_result);
        let unique = call.unique.clone();
        match routed.compose(sender, clock.now()) {
            Ok((id, publication)) => Ok(ComposedTask {
                task,
                id,
                wants_result: !ignore_result.unwrap_or(false),
                unique,
                publication,
            }),
            Err(cause) => Err(SendError::Encode { task, cause }),
        }
    }

    /// Sends one canvas. See [`send_all`](Self::send_all).
    pub(crate) async fn send_one(
        &self,
        canvas: Result<PlannedCanvas, SendError>,
    ) -> Result<SentCanvas, SendError> {
        let mut sent = self.send_all(vec![canvas]).await;
        sent.pop().expect("there is one result per canvas")
    }

    /// Waits for room, then composes the messages and sends all canvases in one batch. Returns one
    /// result per canvas, in the same order.
    ///
    /// The futures are on the heap, because thousands of sends may wait at the same time: a send
    /// that waits has no message yet, and not the state of one that is being sent.
    pub(crate) fn send_all(
        &self,
        canvases: Vec<Result<PlannedCanvas, SendError>>,
    ) -> BoxFuture<'_, Vec<Result<SentCanvas, SendError>>> {
        Box::pin(async move {
            let tasks = canvases.iter().flatten().flat_map(|canvas| &canvas.tasks);
            // A larger batch waits for room for each of its parts.
            let _in_flight = if tasks.clone().count() <= BATCH_SIZE {
                match self.inner.window.enter(tasks.map(RoutedTask::target)).await {
                    Ok(in_flight) => Some(in_flight),
                    Err(cause) => return reject_all(canvases, &cause),
                }
            } else {
                None
            };
            Box::pin(self.send_in_flight(canvases)).await
        })
    }

    /// Composes the messages, prepares the result backend for the results, and publishes.
    async fn send_in_flight(
        &self,
        canvases: Vec<Result<PlannedCanvas, SendError>>,
    ) -> Vec<Result<SentCanvas, SendError>> {
        let canvases = canvases.into_iter();
        let canvases = canvases.map(|canvas| canvas.and_then(|canvas| self.compose(canvas)));
        let canvases = canvases.collect();
        let deadline = self.inner.sender.config.operation_timeout;
        let until = env::instant() + deadline;
        let canvases = self.prepare_results(canvases).await;
        let mut batch = Vec::new();
        let mut batched = Vec::with_capacity(canvases.len());
        for canvas in canvases {
            batched.push(match canvas {
                Ok(canvas) => self.add_to_batch(canvas, &mut batch, until).await,
                Err(error) => Err(error),
            });
        }
        let mut answers = self.publish(&batch, until).await.into_iter();
        let mut publications = batch.iter();
        let mut published = Vec::new();
        let mut results = Vec::with_capacity(batched.len());
        for canvas in batched {
            let canvas = match canvas {
                Ok(canvas) => canvas,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let mut failed = None;
            for BatchedMessage { id, task, lock } in canvas.messages {
                let publication = publications.next();
                match answers.next().unwrap_or_else(|| Err(no_answer())) {
                    Ok(()) => published.extend(publication),
                    Err(cause) => {
                        // A task that may have been sent keeps its lock.
                        if !cause.is_in_doubt() {
                            self.unlock(lock, &id).await;
                        }
                        failed.get_or_insert(SendError::Broker { task, cause });
                    }
                }
            }
            results.push(match failed {
                Some(error) => Err(error),
                None => Ok(canvas.sent),
            });
        }
        self.emit_sent_events(published, env::instant() + deadline)
            .await;
        results
    }

    /// Adds the messages of a canvas to the batch, after their unique locks are taken and the
    /// chords are registered.
    async fn add_to_batch(
        &self,
        canvas: ComposedCanvas,
        batch: &mut Vec<Publication>,
        until: Instant,
    ) -> Result<BatchedCanvas, SendError> {
        let is_single_task =
            canvas.tasks.len() == 1 && canvas.tasks.iter().all(|task| task.id == canvas.result.id);
        let mut locked = Vec::with_capacity(canvas.tasks.len());
        for task in canvas.tasks {
            let error = match self.lock(task, until).await {
                Ok(UniqueCheck::Free(task, lock)) => {
                    locked.push((task, lock));
                    continue;
                }
                // The existing task replaces a single one, but not a part of a workflow, which has
                // continuations of its own.
                Ok(UniqueCheck::Taken { holder, .. }) if is_single_task => {
                    return Ok(BatchedCanvas::existing(holder));
                }
                Ok(UniqueCheck::Taken { task, holder }) => SendError::NotUnique { task, holder },
                Err(error) => error,
            };
            self.unlock_all(locked).await;
            return Err(error);
        }
        let registered = self.begin_chords(&canvas.chords, &canvas.later_chords);
        if let Err(cause) = registered.await {
            self.unlock_all(locked).await;
            let task = canvas.name;
            return Err(SendError::Chord { task, cause });
        }
        let mut messages = Vec::with_capacity(locked.len());
        for (composed, lock) in locked {
            let ComposedTask {
                id,
                task,
                publication,
                ..
            } = *composed;
            batch.push(publication);
            messages.push(BatchedMessage { id, task, lock });
        }
        Ok(BatchedCanvas {
            messages,
            sent: SentCanvas {
                result: canvas.result,
                children: canvas.children,
            },
        })
    }

    async fn unlock_all(&self, locked: Vec<(Box<ComposedTask>, Option<String>)>) {
        for (task, lock) in locked {
            self.unlock(lock, &task.id).await;
        }
    }

    /// Registers the chords and their sizes with the result backend. For the chords that start
    /// `later` it only checks that the backend supports them, because workers could not complete
    /// them otherwise.
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
            reader.with_deadline("start", || store.begin(chord)).await?;
        }
        Ok(())
    }

    /// Prepares the result backend for the results. Canvases whose results it could not receive are
    /// replaced by the error.
    async fn prepare_results(
        &self,
        canvases: Vec<Result<ComposedCanvas, SendError>>,
    ) -> Vec<Result<ComposedCanvas, SendError>> {
        let Some(backend) = self.inner.reader.backend.as_deref() else {
            return canvases;
        };
        let ids = canvases
            .iter()
            .flatten()
            .flat_map(ComposedCanvas::result_ids);
        let ids: Vec<_> = ids.map(str::to_owned).collect();
        if ids.is_empty() {
            return canvases;
        }
        let preparing = self
            .inner
            .reader
            .with_deadline("prepare", || backend.prepare(&ids));
        let Err(cause) = preparing.await else {
            return canvases;
        };
        let reject = |canvas: ComposedCanvas| {
            if canvas.result_ids().next().is_none() {
                return Ok(canvas);
            }
            Err(SendError::Backend {
                task: canvas.name,
                cause: cause.clone(),
            })
        };
        canvases
            .into_iter()
            .map(|canvas| canvas.and_then(reject))
            .collect()
    }
}

/// Replaces the canvases by the error of the broker.
fn reject_all(
    canvases: Vec<Result<PlannedCanvas, SendError>>,
    cause: &ServiceError,
) -> Vec<Result<SentCanvas, SendError>> {
    let reject = |canvas: PlannedCanvas| {
        Err(SendError::Broker {
            task: canvas.name,
            cause: cause.clone(),
        })
    };
    canvases
        .into_iter()
        .map(|canvas| canvas.and_then(reject))
        .collect()
}

impl ComposedCanvas {
    /// Returns the ids of the results that a caller may read: those of the tasks that are sent now,
    /// and that of the canvas.
    fn result_ids(&self) -> impl Iterator<Item = &str> {
        let sent = self.tasks.iter().filter(|task| task.wants_result);
        let sent = sent.map(|task| task.id.as_str());
        let last = (self.tasks.len() != 1 || self.tasks[0].id != self.result.id)
            .then_some(self.result.id.as_str());
        sent.chain(last)
    }
}

/// Creates the error of a chord without a result backend, with Celery's message.
pub(crate) fn no_backend(group_id: &str) -> ServiceError {
    const CAUSE: &str = "Starting chords requires a result backend to be configured. Note that a \
        group chained with a task is also upgraded to be a chord, as this pattern requires \
        synchronization";
    let object = format!("chord {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, "start", object, CAUSE)
        .with_remedy("set result_backend to one that every worker can read, such as redis://")
}
