//! Carries out the steps of deliveries that take broker or backend: storing
//! results, sending messages, and what workflows ask for.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use celery_protocol::{ResultTree, State};

use crate::boundary::{
    BoxFuture, Broker, Content, Publication, Record, ServiceError, no_chords, polls_chords,
};
use crate::client::compose::ComposeError;
use crate::client::no_backend;
use crate::env;
use crate::env::Clock;
use crate::execution::{Job, WorkerContext};
use crate::worker::delivery::event::{EffectError, FollowUp, RejectedTask, StateUpdate};
use crate::worker::delivery::in_flight::{InFlightDelivery, Payload};
use crate::worker::effects::documents;
use crate::worker::effects::messages::MessageFactory;
use crate::worker::workflow::Workflow;
use crate::worker::workflow::effect::{Completion, OutgoingBatch, TaskRequest, WorkflowEffect};

/// Makes the futures of steps; each is bounded by the deadline.
#[derive(Debug)]
pub(crate) struct EffectExecutor {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) services: Arc<WorkerContext>,
    pub(crate) messages: MessageFactory,
    pub(crate) deadline: Duration,
    /// How long results are waited for that a chord needs.
    pub(crate) join_timeout: Option<Duration>,
    pub(crate) clock: Clock,
}

/// How a step went, and what it has led to.
pub(crate) type EffectResult = Result<Vec<WorkflowEffect>, EffectError>;

impl EffectExecutor {
    /// Stores what the report says about the entry's task.
    pub(crate) fn store(
        &self,
        entry: &InFlightDelivery,
        report: StateUpdate,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let services = Arc::clone(&self.services);
        match &entry.work {
            Payload::Task { job, .. } => {
                let (job, children) = (Arc::clone(job), entry.all_children());
                let object = format!("the result of task {}", job.id);
                self.perform("store", object, async move {
                    store(&services, &job, &report, &children, now).await?;
                    Ok(Vec::new())
                })
            }
            Payload::Refused(_) => match entry
                .life
                .refusal()
                .and_then(|refusal| refusal.task.clone())
            {
                Some(task) => {
                    let object = format!("the result of task {}", task.id);
                    self.perform("store", object, async move {
                        store_refused(&services, &task, now).await?;
                        Ok(Vec::new())
                    })
                }
                None => done(Ok(Vec::new())),
            },
        }
    }

    /// Sends what the letter says on behalf of the entry's task.
    pub(crate) fn send(
        &self,
        entry: &mut InFlightDelivery,
        letter: &FollowUp,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let dispatch = match entry.letters.clone() {
            Some(unsent) => unsent,
            None => match self.letters(entry, letter, now) {
                Ok(dispatch) => Arc::new(dispatch),
                Err(cause) => return done(Err(EffectError::Refused(cause))),
            },
        };
        entry.letters = Some(Arc::clone(&dispatch));
        if matches!(letter, FollowUp::Success(_)) {
            entry.children.clone_from(&dispatch.children);
        }
        let sending = self.send_off(&dispatch);
        match letter {
            // It is not sent to be run.
            FollowUp::Dead => sending,
            _ => self.telling(dispatch, sending),
        }
    }

    /// The same, and those who watch are told that the tasks were sent.
    pub(crate) fn telling(
        &self,
        dispatch: Arc<OutgoingBatch>,
        sending: BoxFuture<'static, EffectResult>,
    ) -> BoxFuture<'static, EffectResult> {
        let (services, deadline) = (Arc::clone(&self.services), self.deadline);
        Box::pin(async move {
            let result = sending.await?;
            let until = env::instant() + deadline;
            services
                .client
                .emit_sent_events(&dispatch.letters, until)
                .await;
            Ok(result)
        })
    }

    /// Begins the chords of a dispatch and sends its messages.
    pub(crate) fn send_off(
        &self,
        dispatch: &Arc<OutgoingBatch>,
    ) -> BoxFuture<'static, EffectResult> {
        let broker = Arc::clone(&self.broker);
        let services = Arc::clone(&self.services);
        let object = destinations(&dispatch.letters);
        let dispatch = Arc::clone(dispatch);
        self.perform("publish to", object, async move {
            send_off(&*broker, &services, &dispatch).await?;
            Ok(Vec::new())
        })
    }

    /// What the end of the entry's task means for its workflow.
    pub(crate) fn lead(
        &self,
        entry: &InFlightDelivery,
        turn: &Completion,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let Some(station) = self.station(entry) else {
            return done(Ok(Vec::new()));
        };
        done(Ok(self.workflow(now).turn(&Arc::new(station), turn)))
    }

    pub(crate) fn workflow(&self, now: SystemTime) -> Workflow<'_> {
        Workflow {
            sender: &self.messages.sender,
            registry: &self.services.registry,
            serializer: self.services.result_serializer,
            claim_ttl: self.claim_ttl(),
            polls_chords: self.services.backend.as_deref().is_some_and(polls_chords),
            now,
        }
    }

    /// Celery's: twice what is waited for results, and five seconds at least.
    pub(crate) fn claim_ttl(&self) -> Duration {
        let join_timeout = self.join_timeout.unwrap_or(Duration::from_secs(5));
        (join_timeout * 2).max(Duration::from_secs(5))
    }

    /// The place of the entry's task in its workflow.
    pub(crate) fn station(&self, entry: &InFlightDelivery) -> Option<TaskRequest> {
        let WorkerContext {
            accept, body_limit, ..
        } = &*self.services;
        let (message, stores) = match &entry.work {
            Payload::Task { job, .. } => (&job.message, entry.life.stores_failures()),
            Payload::Refused(content) => match &**content {
                Content::Message(message) => (message, true),
                Content::Malformed { .. } => return None,
            },
        };
        Some(TaskRequest {
            stores: stores && self.services.backend.is_some(),
            children: entry.all_children(),
            ..TaskRequest::of_message(message, accept, *body_limit)
        })
    }

    /// Lets the results of tasks say that they are revoked, where no worker has
    /// said anything about them that counts more.
    pub(crate) fn mark_revoked(&self, ids: Vec<String>, now: SystemTime) -> BoxFuture<'static, ()> {
        let (services, deadline) = (Arc::clone(&self.services), self.deadline);
        Box::pin(async move {
            let marking = mark_revoked(&services, &ids, now);
            match tokio::time::timeout(deadline, marking).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("revoked tasks are not marked: {error}"),
                Err(_) => tracing::warn!("revoked tasks are not marked: no answer"),
            }
        })
    }

    pub(crate) fn letters(
        &self,
        entry: &InFlightDelivery,
        letter: &FollowUp,
        now: SystemTime,
    ) -> Result<OutgoingBatch, String> {
        let messages = &self.messages;
        let alone = |letters: Result<Vec<Publication>, ComposeError>| match letters {
            Ok(letters) => Ok(OutgoingBatch::of_letters(letters)),
            Err(error) => Err(error.to_string()),
        };
        let station = || self.station(entry).unwrap_or_default();
        match (&entry.work, letter) {
            (Payload::Task { job, .. }, FollowUp::Retry { eta, changes }) => {
                alone(messages.retry(job, &entry.queue, *eta, changes.as_deref()))
            }
            (Payload::Task { .. }, FollowUp::Success(value)) => {
                let dispatch = self.workflow(now).success(&station(), value);
                dispatch.map_err(|error| error.to_string())
            }
            (Payload::Task { .. }, FollowUp::Replacement(canvas)) => {
                let dispatch = self.workflow(now).replacement(&station(), canvas);
                dispatch.map_err(|error| error.to_string())
            }
            (Payload::Refused(content), FollowUp::Dead) => match entry.life.refusal() {
                Some(refusal) => alone(messages.dead(content, &entry.queue, refusal, now)),
                None => Ok(OutgoingBatch::default()),
            },
            _ => Ok(OutgoingBatch::default()),
        }
    }

    /// Runs a step's future within the deadline.
    pub(crate) fn perform<T: Send + 'static>(
        &self,
        operation: &'static str,
        object: String,
        step: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, EffectError>> {
        let (deadline, broker) = (self.deadline, Arc::clone(&self.broker));
        Box::pin(async move {
            let performed = tokio::time::timeout(deadline, step).await;
            let error = match performed {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => error,
                Err(_) => {
                    let blocked_reason = broker.blocked_reason();
                    ServiceError::no_answer_for(operation, object, deadline, blocked_reason)
                }
            };
            tracing::warn!("{error}");
            Err(EffectError::from(&error))
        })
    }
}

/// Where letters go, in short.
fn destinations(letters: &[Publication]) -> String {
    match letters {
        [one] => format!("queue {}", one.routing_key),
        letters => format!("{} queues", letters.len()),
    }
}

pub(crate) fn done(result: EffectResult) -> BoxFuture<'static, EffectResult> {
    Box::pin(std::future::ready(result))
}

async fn send_off(
    broker: &dyn Broker,
    services: &WorkerContext,
    dispatch: &OutgoingBatch,
) -> Result<(), ServiceError> {
    let begun = dispatch.begun.load(Ordering::Relaxed);
    for chord in dispatch.chords.iter().skip(begun) {
        let Some(backend) = services.backend.as_deref() else {
            return Err(no_backend(&chord.group_id));
        };
        let chords = backend.chords();
        let chords = chords.ok_or_else(|| no_chords("start", &chord.group_id))?;
        chords.begin(chord).await?;
        dispatch.begun.fetch_add(1, Ordering::Relaxed);
    }
    dispatch.publish(broker).await
}

async fn store(
    services: &WorkerContext,
    job: &Job,
    report: &StateUpdate,
    children: &[ResultTree],
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = services.backend.as_deref() else {
        return Ok(());
    };
    let document = documents::document(job, report, children, now);
    backend.store(job.record(&document)).await
}

async fn mark_revoked(
    services: &WorkerContext,
    ids: &[String],
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = services.backend.as_deref() else {
        return Ok(());
    };
    let found = backend.fetch(ids).await?;
    for (id, document) in ids.iter().zip(found) {
        let may_be_said = document.is_none_or(|document| {
            matches!(
                document.status,
                State::Pending | State::Received | State::Retry | State::Rejected
            )
        });
        if may_be_said {
            let document = documents::revoked_unseen(id, services.result_serializer, now);
            backend.store(Record::new(&document)).await?;
        }
    }
    Ok(())
}

async fn store_refused(
    services: &WorkerContext,
    task: &RejectedTask,
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = services.backend.as_deref() else {
        return Ok(());
    };
    let document = documents::refused(
        &task.id,
        &task.failure_info,
        services.result_serializer,
        now,
    );
    let record = Record::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
    backend.store(record).await
}
