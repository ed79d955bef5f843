//! Carries out the steps of deliveries that take broker or backend: storing
//! results and sending messages.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::State;

use super::delivery::{Letter, Obstacle, RefusedTask, Report};
use super::entries::{Entry, Work};
use super::follow::Desk;
use super::report;
use crate::backend::Record;
use crate::broker::{BoxFuture, Broker, Publication};
use crate::error::ServiceError;
use crate::task::{Job, Services};

/// Makes the futures of steps; each is bounded by the deadline.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) services: Arc<Services>,
    pub(crate) desk: Desk,
    pub(crate) deadline: Duration,
}

/// How a step went.
pub(crate) type Carried = Result<(), Obstacle>;

impl Carrier {
    /// Stores what the report says about the entry's task.
    pub(crate) fn store(
        &self,
        entry: &Entry,
        report: Report,
        now: SystemTime,
    ) -> BoxFuture<'static, Carried> {
        let services = Arc::clone(&self.services);
        match &entry.work {
            Work::Task { job, .. } => {
                let (job, children) = (Arc::clone(job), entry.children.clone());
                let object = format!("the result of task {}", job.id);
                self.perform("store", object, async move {
                    store(&services, &job, &report, &children, now).await
                })
            }
            Work::Refused(_) => match entry
                .life
                .refusal()
                .and_then(|refusal| refusal.task.clone())
            {
                Some(task) => {
                    let object = format!("the result of task {}", task.id);
                    self.perform("store", object, async move {
                        store_refused(&services, &task, now).await
                    })
                }
                None => done(Ok(())),
            },
        }
    }

    /// Sends what the letter says on behalf of the entry's task.
    pub(crate) fn send(
        &self,
        entry: &mut Entry,
        letter: &Letter,
        now: SystemTime,
    ) -> BoxFuture<'static, Carried> {
        let letters = match entry.letters.clone() {
            Some(unsent) => unsent,
            None => match self.letters(entry, letter, now) {
                Ok(letters) => Arc::from(letters),
                Err(cause) => return done(Err(Obstacle::Lasting(cause))),
            },
        };
        entry.letters = Some(Arc::clone(&letters));
        if matches!(letter, Letter::Success(_)) {
            let id = |letter: &Publication| letter.message.properties.correlation_id.clone();
            entry.children = letters.iter().filter_map(id).collect();
        }
        let broker = Arc::clone(&self.broker);
        let object = destinations(&letters);
        self.perform("publish to", object, async move {
            broker.publish(&letters).await.into_iter().collect()
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

    fn letters(
        &self,
        entry: &Entry,
        letter: &Letter,
        now: SystemTime,
    ) -> Result<Vec<Publication>, String> {
        let desk = &self.desk;
        let letters = match (&entry.work, letter) {
            (Work::Task { job, .. }, Letter::Retry { eta, changes }) => {
                desk.retry(job, &entry.queue, *eta, changes.as_deref())
            }
            (Work::Task { job, .. }, Letter::Success(value)) => desk.success(job, value, now),
            (Work::Task { job, .. }, Letter::Failure) => desk.failure(job, now),
            (Work::Refused(content), Letter::Dead) => match entry.life.refusal() {
                Some(refusal) => desk.dead(content, &entry.queue, refusal, now),
                None => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        };
        letters.map_err(|error| error.to_string())
    }

    /// Runs a step's future within the deadline.
    fn perform(
        &self,
        operation: &'static str,
        object: String,
        step: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
    ) -> BoxFuture<'static, Carried> {
        let (deadline, broker) = (self.deadline, Arc::clone(&self.broker));
        Box::pin(async move {
            let performed = tokio::time::timeout(deadline, step).await;
            let error = match performed {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => {
                    let obstacle = broker.obstacle();
                    ServiceError::no_answer_for(operation, object, deadline, obstacle)
                }
            };
            tracing::warn!("{error}");
            Err(Obstacle::from(&error))
        })
    }
}

impl From<&ServiceError> for Obstacle {
    fn from(error: &ServiceError) -> Self {
        if error.is_transient() {
            Self::Passing
        } else {
            Self::Lasting(error.to_string())
        }
    }
}

/// Where letters go, in short.
fn destinations(letters: &[Publication]) -> String {
    match letters {
        [one] => format!("queue {}", one.routing_key),
        letters => format!("{} queues", letters.len()),
    }
}

fn done(carried: Carried) -> BoxFuture<'static, Carried> {
    Box::pin(std::future::ready(carried))
}

async fn store(
    services: &Services,
    job: &Job,
    report: &Report,
    children: &[String],
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = services.backend.as_deref() else {
        return Ok(());
    };
    let document = report::document(job, report, children, now);
    backend.store(job.record(&document)).await
}

async fn mark_revoked(
    services: &Services,
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
            let document = report::revoked_unseen(id, services.result_serializer, now);
            backend.store(Record::new(&document)).await?;
        }
    }
    Ok(())
}

async fn store_refused(
    services: &Services,
    task: &RefusedTask,
    now: SystemTime,
) -> Result<(), ServiceError> {
    let Some(backend) = services.backend.as_deref() else {
        return Ok(());
    };
    let document = report::refused(&task.id, &task.mishap, services.result_serializer, now);
    let record = Record::new(&document).reply(task.reply_to.as_deref(), Some(&task.id));
    backend.store(record).await
}
