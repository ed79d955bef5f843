//! Carries out the effects of deliveries that need the broker or the result backend:
//! [`EffectExecutor`]. Called by the driver.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use celery_protocol::{ResultTree, State};

use crate::boundary::{
    BoxFuture, Broker, Content, Publication, ResultRecord, ServiceError, no_chords, polls_chords,
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

/// Creates the futures of effects. Each operation is bounded by `deadline`.
#[derive(Debug)]
pub(crate) struct EffectExecutor {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) context: Arc<WorkerContext>,
    pub(crate) messages: MessageFactory,
    /// The timeout of one operation.
    pub(crate) deadline: Duration,
    /// How long to wait for the results that a chord needs; `None` is without limit.
    pub(crate) join_timeout: Option<Duration>,
    pub(crate) clock: Clock,
}

/// The result of an effect: the effects that it leads to.
pub(crate) type EffectResult = Result<Vec<WorkflowEffect>, EffectError>;

impl EffectExecutor {
    /// Stores a state of the delivery's task.
    pub(crate) fn store(
        &self,
        delivery: &InFlightDelivery,
        update: StateUpdate,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let context = Arc::clone(&self.context);
        match &delivery.payload {
            Payload::Task { job, .. } => {
                let (job, children) = (Arc::clone(job), delivery.all_children());
                let object = format!("the result of task {}", job.id);
                self.with_timeout("store", object, async move {
                    store(&context, &job, &update, &children, now).await?;
                    Ok(Vec::new())
                })
            }
            Payload::Rejected(_) => match delivery
                .state
                .rejection()
                .and_then(|rejection| rejection.task.clone())
            {
                Some(task) => {
                    let object = format!("the result of task {}", task.id);
                    self.with_timeout("store", object, async move {
                        store_rejected(&context, &task, now).await?;
                        Ok(Vec::new())
                    })
                }
                None => ready(Ok(Vec::new())),
            },
        }
    }

    /// Publishes the messages of a follow-up of the delivery's task.
    pub(crate) fn send(
        &self,
        delivery: &mut InFlightDelivery,
        follow_up: &FollowUp,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let batch = match delivery.outgoing.clone() {
            Some(unsent) => unsent,
            None => match self.compose_follow_up(delivery, follow_up, now) {
                Ok(batch) => Arc::new(batch),
                Err(cause) => return ready(Err(EffectError::Refused(cause))),
            },
        };
        delivery.outgoing = Some(Arc::clone(&batch));
        if matches!(follow_up, FollowUp::Success(_)) {
            delivery.children.clone_from(&batch.children);
        }
        match follow_up {
            // Not a task, so without a `task-sent` event.
            FollowUp::DeadLetter => self.publish(&batch),
            _ => self.publish_tasks(batch),
        }
    }

    /// Publishes a batch of tasks, then their `task-sent` events if these are enabled.
    pub(crate) fn publish_tasks(
        &self,
        batch: Arc<OutgoingBatch>,
    ) -> BoxFuture<'static, EffectResult> {
        let publishing = self.publish(&batch);
        let (context, deadline) = (Arc::clone(&self.context), self.deadline);
        Box::pin(async move {
            let result = publishing.await?;
            let until = env::instant() + deadline;
            context
                .client
                .emit_sent_events(&batch.messages, until)
                .await;
            Ok(result)
        })
    }

    /// Starts the chords of a batch, then publishes its messages.
    pub(crate) fn publish(&self, batch: &Arc<OutgoingBatch>) -> BoxFuture<'static, EffectResult> {
        let broker = Arc::clone(&self.broker);
        let context = Arc::clone(&self.context);
        let object = destinations(&batch.messages);
        let batch = Arc::clone(batch);
        self.with_timeout("publish to", object, async move {
            publish(&*broker, &context, &batch).await?;
            Ok(Vec::new())
        })
    }

    /// Returns the workflow effects of the completion of the delivery's task.
    pub(crate) fn continue_workflow(
        &self,
        delivery: &InFlightDelivery,
        completion: &Completion,
        now: SystemTime,
    ) -> BoxFuture<'static, EffectResult> {
        let Some(request) = self.task_request(delivery) else {
            return ready(Ok(Vec::new()));
        };
        ready(Ok(self
            .workflow(now)
            .complete(&Arc::new(request), completion)))
    }

    pub(crate) fn workflow(&self, now: SystemTime) -> Workflow<'_> {
        Workflow {
            sender: &self.messages.sender,
            registry: &self.context.registry,
            serializer: self.context.result_serializer,
            claim_ttl: self.claim_ttl(),
            polls_chords: self.context.backend.as_deref().is_some_and(polls_chords),
            now,
        }
    }

    /// Returns the time to live of a claim: twice the time to wait for results, at least
    /// 5 s.
    pub(crate) fn claim_ttl(&self) -> Duration {
        let join_timeout = self.join_timeout.unwrap_or(Duration::from_secs(5));
        (join_timeout * 2).max(Duration::from_secs(5))
    }

    /// Returns the request of the delivery's task, or `None` for a malformed message.
    pub(crate) fn task_request(&self, delivery: &InFlightDelivery) -> Option<TaskRequest> {
        let WorkerContext {
            accept, body_limit, ..
        } = &*self.context;
        let (message, stores) = match &delivery.payload {
            Payload::Task { job, .. } => (&job.message, delivery.state.stores_failures()),
            Payload::Rejected(content) => match &**content {
                Content::Message(message) => (message, true),
                Content::Malformed { .. } => return None,
            },
        };
        Some(TaskRequest {
            stores_failures: stores && self.context.backend.is_some(),
            children: delivery.all_children(),
            ..TaskRequest::of_message(message, accept, *body_limit)
        })
    }

    /// Stores the state REVOKED for these tasks, except for those that have started or
    /// ended.
    pub(crate) fn store_revoked(
        &self,
        ids: Vec<String>,
        now: SystemTime,
    ) -> BoxFuture<'static, ()> {
        let (context, deadline) = (Arc::clone(&self.context), self.deadline);
        Box::pin(async move {
            let storing = store_revoked(&context, &ids, now);
            match tokio::time::timeout(deadline, storing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!("cannot store the state of revoked tasks: {error}")
                }
                Err(_) => tracing::warn!(
                    "cannot store the state of revoked tasks: no answer within {deadline:?}"
                ),
            }
        })
    }

    /// Composes the messages of a follow-up.
    ///
    /// # Errors
    ///
    /// With the cause, when they cannot be composed and never will be.
    fn compose_follow_up(
        &self,
        delivery: &InFlightDelivery,
        follow_up: &FollowUp,
        now: SystemTime,
    ) -> Result<OutgoingBatch, String> {
        let messages = &self.messages;
        let without_chords = |messages: Result<Vec<Publication>, ComposeError>| match messages {
            Ok(messages) => Ok(OutgoingBatch::of_messages(messages)),
            Err(error) => Err(error.to_string()),
        };
        let request = || self.task_request(delivery).unwrap_or_default();
        match (&delivery.payload, follow_up) {
            (Payload::Task { job, .. }, FollowUp::Retry { eta, changes }) => {
                without_chords(messages.retry(job, &delivery.queue, *eta, changes.as_deref()))
            }
            (Payload::Task { .. }, FollowUp::Success(value)) => {
                let batch = self.workflow(now).compose_continuations(&request(), value);
                batch.map_err(|error| error.to_string())
            }
            (Payload::Task { .. }, FollowUp::Replacement(canvas)) => {
                let batch = self.workflow(now).compose_replacement(&request(), canvas);
                batch.map_err(|error| error.to_string())
            }
            (Payload::Rejected(content), FollowUp::DeadLetter) => {
                match delivery.state.rejection() {
                    Some(rejection) => without_chords(messages.dead_letter(
                        content,
                        &delivery.queue,
                        rejection,
                        now,
                    )),
                    None => Ok(OutgoingBatch::default()),
                }
            }
            _ => Ok(OutgoingBatch::default()),
        }
    }

    /// Runs an operation with the timeout, and logs its failure.
    pub(crate) fn with_timeout<T: Send + 'static>(
        &self,
        operation: &'static str,
        object: String,
        future: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, EffectError>> {
        let (deadline, broker) = (self.deadline, Arc::clone(&self.broker));
        Box::pin(async move {
            let outcome = tokio::time::timeout(deadline, future).await;
            let error = match outcome {
                Ok(Ok(value)) => return Ok(value),
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

/// Describes the destinations of messages in error texts.
fn destinations(messages: &[Publication]) -> String {
    match messages {
        [one] => format!("queue {}", one.routing_key),
        messages => format!("{} queues", messages.len()),
    }
}

/// Returns a future that is ready with this result.
pub(crate) fn ready(result: EffectResult) -> BoxFuture<'static, EffectResult> {
    Box::pin(std::future::ready(result))
}

async fn publish(
    broker: &dyn Broker,
    context: &WorkerContext,
    batch: &OutgoingBatch,
) -> Result<(), ServiceError> {
    let started_chords = batch.started_chords.load(Ordering::Relaxed);
    for chord in batch.chords.iter().skip(started_chords) {
        let Some(backend) = context.backend.as_deref() else {
            return Err(no_backend(&chord.group_id));
        };
        let chords = backend.chords();
        let chords = chords.ok_or_else(|| no_chords("start", &chord.group_id))?;
        chords.begin(chord).await?;
        batch.started_chords.fetch_add(1, Ordering::Relaxed);
    }
    batch.publish(broker).await
}

async fn store(
    context: &WorkerContext,
    job: &Job,
    update: &StateUpdate,
    children: &[ResultTree],
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = context.backend.as_deref() else {
        return Ok(());
    };
    let document = documents::document(job, update, children, now);
    backend.store(job.record(&document)).await
}

async fn store_revoked(
    context: &WorkerContext,
    ids: &[String],
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = context.backend.as_deref() else {
        return Ok(());
    };
    let found = backend.fetch(ids).await?;
    for (id, document) in ids.iter().zip(found) {
        let may_overwrite = document.is_none_or(|document| {
            matches!(
                document.status,
                State::Pending | State::Received | State::Retry | State::Rejected
            )
        });
        if may_overwrite {
            let document = documents::revoked_unstarted(id, context.result_serializer, now);
            backend.store(ResultRecord::new(&document)).await?;
        }
    }
    Ok(())
}

async fn store_rejected(
    context: &WorkerContext,
    task: &RejectedTask,
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = context.backend.as_deref() else {
        return Ok(());
    };
    let document =
        documents::rejected(&task.id, &task.failure_info, context.result_serializer, now);
    let record = ResultRecord::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
    backend.store(record).await
}
