//! Reading a delivery: which task it is, and what is known about it. Pure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use celery_protocol::{
    DecodeError, Embed, Exception, Message, TaskHeaders, TimeLimits, encode_body,
};

use crate::boundary::Content;
use crate::execution::{ErasedTask, Job, Registry, RegistryEntry, TaskControl, WorkerContext};
use crate::task::TaskOptions;
use crate::worker::core::failure::{FailureInfo, celery_exception};
use crate::worker::delivery::event::{
    AdmissionChecks, Continuations, ExecutionPolicy, RejectedTask, Rejection,
};

/// Celery's defaults for what neither task nor configuration says.
const MAX_RETRIES: Option<u32> = Some(3);
const RETRY_DELAY: Duration = Duration::from_secs(180);

/// Reads deliveries for one worker.
#[derive(Debug)]
pub(crate) struct MessageDecoder {
    pub(crate) registry: Arc<Registry>,
    pub(crate) services: Arc<WorkerContext>,
    /// What tasks inherit from the configuration.
    pub(crate) defaults: TaskOptions,
    /// Whether those who watch are told of tasks.
    pub(crate) tells: bool,
    /// Whether a redelivered late task is asked for a success of its own.
    pub(crate) deduplicates: bool,
    /// Whether the store is asked for what was revoked for good.
    pub(crate) durable_revokes: bool,
    /// What remote control has set for tasks, by name.
    pub(crate) time_limits: HashMap<String, TimeLimits>,
}

/// A delivery that was read.
pub(crate) enum Decoded {
    Task {
        job: Arc<Job>,
        run: Arc<dyn ErasedTask>,
        plan: ExecutionPolicy,
    },
    Refused {
        content: Box<Content>,
        refusal: Rejection,
    },
}

/// A task that can be run, its code, and what was decided about it.
type Runnable = (Job, Arc<dyn ErasedTask>, ExecutionPolicy);

impl MessageDecoder {
    /// `returns` is how often the broker had delivered it before, where it
    /// counts.
    pub(crate) fn read(
        &self,
        content: Content,
        redelivered: bool,
        returns: Option<u32>,
    ) -> Decoded {
        let message = match content {
            Content::Message(message) => message,
            Content::Malformed { raw, error } => {
                let refusal = refuse("malformed", &error);
                return Decoded::Refused {
                    content: Box::new(Content::Malformed { raw, error }),
                    refusal,
                };
            }
        };
        match self.read_message(message, redelivered) {
            Ok((job, run, mut plan)) => {
                plan.requeued_when_lost &= may_return(redelivered, returns);
                Decoded::Task {
                    job: Arc::new(job),
                    run,
                    plan,
                }
            }
            Err(refused) => {
                let (message, refusal) = *refused;
                Decoded::Refused {
                    content: Box::new(Content::Message(message)),
                    refusal,
                }
            }
        }
    }

    fn read_message(
        &self,
        message: Message,
        redelivered: bool,
    ) -> Result<Runnable, Box<(Message, Rejection)>> {
        // A message that is refused is kept as it came.
        let converted = match self.as_v2(&message) {
            Ok(converted) => converted,
            Err(refusal) => return Err(Box::new((message, refusal))),
        };
        match self.plan(converted.as_ref().unwrap_or(&message), redelivered) {
            Ok((registered, id, plan)) => {
                let job = Job {
                    id,
                    task: Arc::clone(&registered.name),
                    retries: plan.retries,
                    redelivered,
                    stores_result: plan.stores_result,
                    wants_value: plan.stores_result || plan.links.on_success || plan.links.in_chord,
                    soft_limit: plan.soft_limit,
                    hard_limit: plan.hard_limit,
                    message: converted.unwrap_or(message),
                    uncompressed: OnceLock::new(),
                    services: Arc::clone(&self.services),
                    control: TaskControl::default(),
                    children: Mutex::default(),
                    failure: None,
                };
                Ok((job, Arc::clone(&registered.run), plan))
            }
            Err(refusal) => Err(Box::new((message, refusal))),
        }
    }

    /// A message of protocol 1, rewritten in the form of protocol 2, so that
    /// everything after this has one form to deal with.
    fn as_v2(&self, message: &Message) -> Result<Option<Message>, Rejection> {
        // One header tells the versions apart; the others are read later, once.
        let task = message.headers.find("task");
        if task
            .map_err(|error| refuse("undecodable", &error))?
            .is_some()
        {
            return Ok(None);
        }
        let payload = message
            .payload(&self.services.accept, self.services.body_limit)
            .map_err(|error| refuse_content(&error))?;
        let (headers, body) = payload
            .task_v1()
            .map_err(|error| refuse("undecodable", &error))?;
        let body = encode_body(payload.serializer(), &body.args, &body.kwargs, &body.embed)
            .map_err(|error| refuse("undecodable", &DecodeError::new(error.to_string())))?;
        let mut converted = Message::task(headers.into_owned(), payload.serializer(), body);
        converted.properties = message.properties.clone();
        Ok(Some(converted))
    }

    fn plan(
        &self,
        message: &Message,
        redelivered: bool,
    ) -> Result<(&RegistryEntry, String, ExecutionPolicy), Rejection> {
        let undecodable = |error: DecodeError| refuse("undecodable", &error);
        let headers = message
            .headers
            .task()
            .map_err(undecodable)?
            .ok_or_else(|| refuse("undecodable", &DecodeError::new("there is no task header")))?;
        let registered = self
            .registry
            .find(&headers.task)
            .ok_or_else(|| unregistered(&headers, message))?;
        // From here on somebody can be told.
        let failed = |refusal| refuse_task(&headers, message, refusal);
        let undecodable = |error: DecodeError| failed(refuse("undecodable", &error));
        let payload = message
            .payload(&self.services.accept, self.services.body_limit)
            .map_err(|error| failed(refuse_content(&error)))?;
        let body = payload.body().map_err(undecodable)?;
        body.arguments().map_err(undecodable)?;
        let links = links(&body.embed).map_err(undecodable)?;
        let options = &registered.declaration.options;
        let plan = self
            .plan_of(&headers, options, links, redelivered)
            .map_err(undecodable)?;
        Ok((registered, headers.id.into_owned(), plan))
    }

    /// What has to be asked before a task starts.
    pub(crate) fn checks(&self, task: &TaskOptions, redelivered: bool) -> AdmissionChecks {
        let acks_late = task.acks_late.or(self.defaults.acks_late) == Some(true);
        AdmissionChecks {
            success: self.deduplicates && acks_late && redelivered,
            revoked: self.durable_revokes,
            unique: task.unique,
        }
    }

    fn plan_of(
        &self,
        headers: &TaskHeaders<'_>,
        task: &TaskOptions,
        links: Continuations,
        redelivered: bool,
    ) -> Result<ExecutionPolicy, DecodeError> {
        let defaults = &self.defaults;
        let flag = |pick: fn(&TaskOptions) -> Option<bool>| {
            pick(task).or_else(|| pick(defaults)).unwrap_or(false)
        };
        // The message's own word goes before the task's, as in Celery.
        let ignores = headers
            .ignore_result
            .unwrap_or_else(|| flag(|options| options.ignore_result));
        let has_backend = self.services.backend.is_some();
        let set = self.time_limits.get(&*headers.task);
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
        let limit = |pick: fn(&TimeLimits) -> Option<f64>, otherwise: Option<Duration>| match (
            pick(&headers.timelimit),
            set,
        ) {
            (Some(header), _) => seconds(header),
            (None, Some(set)) => pick(set).and_then(seconds),
            (None, None) => otherwise,
        };
        Ok(ExecutionPolicy {
            acks_late: flag(|options| options.acks_late),
            acks_on_failure: task
                .acks_on_failure
                .or(defaults.acks_on_failure)
                .unwrap_or(true),
            acks_on_timeout: task
                .acks_on_timeout
                .or(task.acks_on_failure)
                .or(defaults.acks_on_timeout)
                .or(defaults.acks_on_failure)
                .unwrap_or(true),
            tells: self.tells,
            asks: self.checks(task, redelivered).any(),
            requeued_when_lost: flag(|options| options.reject_on_worker_lost),
            stores_result: has_backend && !ignores,
            stores_errors: has_backend && flag(|options| options.store_errors),
            track_started: flag(|options| options.track_started),
            links,
            eta: headers.eta_time()?,
            expires: headers.expires_time()?,
            soft_limit: limit(
                |limits| limits.soft,
                task.soft_time_limit.or(defaults.soft_time_limit),
            ),
            hard_limit: limit(
                |limits| limits.hard,
                task.time_limit.or(defaults.time_limit),
            ),
            retries: headers.retries,
            max_retries: task
                .max_retries
                .or(defaults.max_retries)
                .unwrap_or(MAX_RETRIES),
            retry_delay: task
                .retry_delay
                .or(defaults.retry_delay)
                .unwrap_or(RETRY_DELAY),
            autoretry: task.autoretry,
        })
    }
}

/// Most deliveries of a message whose task loses its process each time.
const DELIVERIES: u32 = 5;

/// Whether a message may be delivered once more after its task has taken its
/// process with it. Who is told only that this is not the first delivery does
/// not know how many there were: it is the last one.
fn may_return(redelivered: bool, returns: Option<u32>) -> bool {
    match returns {
        Some(returns) => returns.saturating_add(1) < DELIVERIES,
        None => !redelivered,
    }
}

fn unregistered(headers: &TaskHeaders<'_>, message: &Message) -> Rejection {
    let task = headers.task.as_ref();
    Rejection {
        reason: "unregistered",
        detail: format!("no task named {task:?} is registered in this worker"),
        task: Some(Box::new(RejectedTask {
            id: headers.id.clone().into_owned(),
            reply_to: message.properties.reply_to.clone(),
            is_linked: true,
            failure_info: celery_exception("NotRegistered", task),
        })),
    }
}

/// The same for a task with an id, which fails with it: its message is kept, and
/// who waits for it or for its workflow is told.
fn refuse_task(headers: &TaskHeaders<'_>, message: &Message, refusal: Rejection) -> Rejection {
    let exception = Exception::new("kombu.exceptions", "DecodeError", refusal.detail.clone());
    Rejection {
        task: Some(Box::new(RejectedTask {
            id: headers.id.clone().into_owned(),
            reply_to: message.properties.reply_to.clone(),
            is_linked: true,
            failure_info: FailureInfo::new(exception),
        })),
        ..refusal
    }
}

fn links(embed: &Embed<'_>) -> Result<Continuations, DecodeError> {
    match embed.is_empty() {
        true => Ok(Continuations::default()),
        false => Continuations::of(embed),
    }
}

fn refuse_content(error: &DecodeError) -> Rejection {
    let reason = if error.is_refused() {
        "refused-content-type"
    } else {
        "undecodable"
    };
    refuse(reason, error)
}

fn refuse(reason: &'static str, error: &DecodeError) -> Rejection {
    Rejection {
        reason,
        detail: error.to_string(),
        task: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_loses_its_process_does_not_go_round_for_ever() {
        assert!(may_return(false, None));
        assert!(!may_return(true, None));
        let allowed = (0..10).take_while(|returns| may_return(*returns > 0, Some(*returns)));
        assert_eq!(allowed.count(), 4);
    }
}
