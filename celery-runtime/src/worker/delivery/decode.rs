//! Decodes deliveries into jobs and execution policies. Pure; called by the driver
//! for each delivery.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use celery_protocol::{
    DecodeError, Embed, Exception, Message, TaskHeaders, TimeLimits, encode_body,
};

use crate::boundary::Content;
use crate::execution::{
    ErasedTask, FailureInfo, Job, Registry, RegistryEntry, TaskControl, WorkerContext,
};
use crate::task::TaskOptions;
use crate::worker::core::failure::celery_exception;
use crate::worker::delivery::event::{
    AdmissionChecks, Continuations, ExecutionPolicy, RejectedTask, Rejection,
};

/// Celery's default of `max_retries`.
const MAX_RETRIES: Option<u32> = Some(3);

/// Celery's default of `default_retry_delay`.
const RETRY_DELAY: Duration = Duration::from_secs(180);

/// The maximum number of deliveries of a message whose task loses its process each
/// time.
const MAX_DELIVERIES: u32 = 5;

/// Decodes the deliveries of one worker.
#[derive(Debug)]
pub(crate) struct MessageDecoder {
    pub(crate) registry: Arc<Registry>,
    pub(crate) context: Arc<WorkerContext>,
    /// The options that tasks inherit from the configuration.
    pub(crate) defaults: TaskOptions,
    /// Whether monitoring events are emitted for tasks.
    pub(crate) emits_events: bool,
    /// Whether the result backend is checked for an earlier success of a redelivered
    /// late-acknowledged task.
    pub(crate) deduplicates: bool,
    /// Whether the store is checked for durable revocations.
    pub(crate) durable_revokes: bool,
    /// Time limits set by remote control, by task name.
    pub(crate) time_limits: HashMap<String, TimeLimits>,
}

/// A decoded delivery.
pub(crate) enum Decoded {
    Task {
        job: Arc<Job>,
        run: Arc<dyn ErasedTask>,
        policy: ExecutionPolicy,
    },
    Rejected {
        content: Box<Content>,
        rejection: Rejection,
    },
}

/// The job of a registered task, its code and its policy.
type Runnable = (Job, Arc<dyn ErasedTask>, ExecutionPolicy);

impl MessageDecoder {
    /// Decodes a delivery. `delivery_count` is the number of earlier deliveries of the
    /// message, if the broker counts them.
    pub(crate) fn decode(
        &self,
        content: Content,
        redelivered: bool,
        delivery_count: Option<u32>,
    ) -> Decoded {
        let message = match content {
            Content::Message(message) => message,
            Content::Malformed { raw, error } => {
                let rejection = reject("malformed", &error);
                return Decoded::Rejected {
                    content: Box::new(Content::Malformed { raw, error }),
                    rejection,
                };
            }
        };
        match self.decode_task(message, redelivered) {
            Ok((job, run, mut policy)) => {
                policy.requeued_when_lost &= may_be_redelivered(redelivered, delivery_count);
                Decoded::Task {
                    job: Arc::new(job),
                    run,
                    policy,
                }
            }
            Err(rejected) => {
                let (message, rejection) = *rejected;
                Decoded::Rejected {
                    content: Box::new(Content::Message(message)),
                    rejection,
                }
            }
        }
    }

    fn decode_task(
        &self,
        message: Message,
        redelivered: bool,
    ) -> Result<Runnable, Box<(Message, Rejection)>> {
        // A rejected message is kept in its original form.
        let converted = match self.convert_v1(&message) {
            Ok(converted) => converted,
            Err(rejection) => return Err(Box::new((message, rejection))),
        };
        match self.inspect(converted.as_ref().unwrap_or(&message), redelivered) {
            Ok((registered, id, policy)) => {
                let job = Job {
                    id,
                    task: Arc::clone(&registered.name),
                    retries: policy.retries,
                    redelivered,
                    stores_result: policy.stores_result,
                    wants_value: policy.stores_result
                        || policy.continuations.on_success
                        || policy.continuations.in_chord,
                    soft_limit: policy.soft_limit,
                    hard_limit: policy.hard_limit,
                    message: converted.unwrap_or(message),
                    services: Arc::clone(&self.context),
                    control: TaskControl::default(),
                    children: Mutex::default(),
                    uncompressed: OnceLock::new(),
                    failure: None,
                };
                Ok((job, Arc::clone(&registered.run), policy))
            }
            Err(rejection) => Err(Box::new((message, rejection))),
        }
    }

    /// Converts a message of protocol 1 to protocol 2, so that the rest of the worker
    /// handles one protocol. Returns `None` for a message of protocol 2.
    fn convert_v1(&self, message: &Message) -> Result<Option<Message>, Rejection> {
        // Only protocol 2 has this header; the others are decoded later, once.
        let task = message.headers.find("task");
        if task
            .map_err(|error| reject("undecodable", &error))?
            .is_some()
        {
            return Ok(None);
        }
        let payload = message
            .payload(&self.context.accept, self.context.body_limit)
            .map_err(|error| reject_content(&error))?;
        let (headers, body) = payload
            .task_v1()
            .map_err(|error| reject("undecodable", &error))?;
        let body = encode_body(payload.serializer(), &body.args, &body.kwargs, &body.embed)
            .map_err(|error| reject("undecodable", &DecodeError::new(error.to_string())))?;
        let mut converted = Message::task(headers.into_owned(), payload.serializer(), body);
        converted.properties = message.properties.clone();
        Ok(Some(converted))
    }

    /// Reads everything that a task needs to run, so that a message that cannot be
    /// decoded is rejected before the task starts.
    fn inspect(
        &self,
        message: &Message,
        redelivered: bool,
    ) -> Result<(&RegistryEntry, String, ExecutionPolicy), Rejection> {
        let undecodable = |error: DecodeError| reject("undecodable", &error);
        let headers = message
            .headers
            .task()
            .map_err(undecodable)?
            .ok_or_else(|| reject("undecodable", &DecodeError::new("there is no task header")))?;
        let registered = self
            .registry
            .find(&headers.task)
            .ok_or_else(|| unregistered(&headers, message))?;
        // The id is known, so that from here on a rejection fails the task.
        let failed = |rejection| reject_task(&headers, message, rejection);
        let undecodable = |error: DecodeError| failed(reject("undecodable", &error));
        let payload = message
            .payload(&self.context.accept, self.context.body_limit)
            .map_err(|error| failed(reject_content(&error)))?;
        let body = payload.body().map_err(undecodable)?;
        body.arguments().map_err(undecodable)?;
        let continuations = continuations(&body.embed).map_err(undecodable)?;
        let options = &registered.declaration.options;
        let policy = self
            .resolve_policy(&headers, options, continuations, redelivered)
            .map_err(undecodable)?;
        Ok((registered, headers.id.into_owned(), policy))
    }

    /// Returns the checks to make before a task starts.
    pub(crate) fn admission_checks(
        &self,
        task: &TaskOptions,
        redelivered: bool,
    ) -> AdmissionChecks {
        let acks_late = task.acks_late.or(self.defaults.acks_late) == Some(true);
        AdmissionChecks {
            success: self.deduplicates && acks_late && redelivered,
            revoked: self.durable_revokes,
            unique: task.unique,
        }
    }

    fn resolve_policy(
        &self,
        headers: &TaskHeaders<'_>,
        task: &TaskOptions,
        continuations: Continuations,
        redelivered: bool,
    ) -> Result<ExecutionPolicy, DecodeError> {
        let defaults = &self.defaults;
        let flag = |pick: fn(&TaskOptions) -> Option<bool>| {
            pick(task).or_else(|| pick(defaults)).unwrap_or(false)
        };
        // As in Celery, the option of the message takes precedence over the task's.
        let ignores = headers
            .ignore_result
            .unwrap_or_else(|| flag(|options| options.ignore_result));
        let has_backend = self.context.backend.is_some();
        let (soft_limit, hard_limit) = self.resolve_time_limits(headers, task);
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
            emits_events: self.emits_events,
            checks_admission: self.admission_checks(task, redelivered).any(),
            requeued_when_lost: flag(|options| options.reject_on_worker_lost),
            stores_result: has_backend && !ignores,
            stores_errors: has_backend && flag(|options| options.store_errors),
            track_started: flag(|options| options.track_started),
            continuations,
            eta: headers.eta_time()?,
            expires: headers.expires_time()?,
            soft_limit,
            hard_limit,
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

    /// Returns the soft and the hard time limit: those of the message, otherwise those set
    /// by remote control, otherwise those of the task or the configuration.
    fn resolve_time_limits(
        &self,
        headers: &TaskHeaders<'_>,
        task: &TaskOptions,
    ) -> (Option<Duration>, Option<Duration>) {
        let remote = self.time_limits.get(&*headers.task);
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
        let limit = |pick: fn(&TimeLimits) -> Option<f64>, default: Option<Duration>| match (
            pick(&headers.timelimit),
            remote,
        ) {
            (Some(header), _) => seconds(header),
            (None, Some(remote)) => pick(remote).and_then(seconds),
            (None, None) => default,
        };
        let soft = task.soft_time_limit.or(self.defaults.soft_time_limit);
        let hard = task.time_limit.or(self.defaults.time_limit);
        (
            limit(|limits| limits.soft, soft),
            limit(|limits| limits.hard, hard),
        )
    }
}

/// Returns whether a message may be requeued after its task lost its process. If the
/// broker does not count deliveries, the second one is the last.
fn may_be_redelivered(redelivered: bool, delivery_count: Option<u32>) -> bool {
    match delivery_count {
        Some(delivery_count) => delivery_count.saturating_add(1) < MAX_DELIVERIES,
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

/// Adds the task of the message to a rejection. The task then fails, and with it its
/// workflow.
fn reject_task(headers: &TaskHeaders<'_>, message: &Message, rejection: Rejection) -> Rejection {
    let exception = Exception::new("kombu.exceptions", "DecodeError", rejection.detail.clone());
    Rejection {
        task: Some(Box::new(RejectedTask {
            id: headers.id.clone().into_owned(),
            reply_to: message.properties.reply_to.clone(),
            is_linked: true,
            failure_info: FailureInfo::new(exception),
        })),
        ..rejection
    }
}

fn continuations(embed: &Embed<'_>) -> Result<Continuations, DecodeError> {
    if embed.is_empty() {
        Ok(Continuations::default())
    } else {
        Continuations::from_embed(embed)
    }
}

fn reject_content(error: &DecodeError) -> Rejection {
    let reason = if error.is_refused() {
        "refused-content-type"
    } else {
        "undecodable"
    };
    reject(reason, error)
}

fn reject(reason: &'static str, error: &DecodeError) -> Rejection {
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
    fn message_of_lost_process_is_redelivered_a_limited_number_of_times() {
        assert!(may_be_redelivered(false, None));
        assert!(!may_be_redelivered(true, None));
        let allowed = (0..10).take_while(|delivery_count| {
            may_be_redelivered(*delivery_count > 0, Some(*delivery_count))
        });
        assert_eq!(allowed.count(), 4);
    }
}
