//! Builds the messages of retries, dead letters and elected tasks:
//! [`MessageFactory`]. Pure.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::{
    Compression, DecodeError, EncodeError, Message, Payload, Properties, Value, WireSignature,
    encode_body, repr, time,
};

use crate::boundary::{Content, DEAD_SUFFIX, Publication, Queue};
use crate::canvas::options::CallOptions;
use crate::client::compose::{ComposeError, Outgoing, Sender, compose, declarable, raw_call};
use crate::env;
use crate::execution::{Changes, Job};
use crate::worker::delivery::event::Rejection;

/// Headers that a retry does not copy: those that RabbitMQ adds to one message.
const NOT_COPIED: &[&str] = &[
    "redelivered",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];

/// Builds messages, with the settings of the sender.
#[derive(Debug)]
pub(crate) struct MessageFactory {
    pub(crate) sender: Sender,
    pub(crate) hostname: String,
    /// The queues that the worker consumes.
    pub(crate) queues: Vec<Arc<Queue>>,
}

impl MessageFactory {
    /// Builds the retry of a task, at `eta` or at once, with the exchange and routing key
    /// by which the message came to `queue`. The rest of the message is unchanged, except
    /// for `changes`.
    pub(crate) fn retry(
        &self,
        job: &Job,
        queue: &str,
        eta: Option<SystemTime>,
        changes: Option<&Changes>,
    ) -> Result<Vec<Publication>, ComposeError> {
        let headers = job.headers().map_err(|error| unreadable(&error))?;
        let mut headers = headers.into_owned();
        headers.retries = job.retries + 1;
        headers.eta = eta.map(|eta| Cow::Owned(time::format(eta)));
        // As in Celery, a task without a parent becomes the parent of its retry.
        headers
            .parent_id
            .get_or_insert_with(|| Cow::Owned(job.id.clone()));
        headers
            .extra
            .retain(|(name, _)| !NOT_COPIED.contains(&&**name));

        let mut properties = job.message.properties.clone();
        let (exchange, routing_key) = return_address(&mut properties, queue);
        properties.delivery_tag = None;
        let mut message = Message::new(headers.into(), properties, job.message.body.clone());
        if let Some(changes) = changes {
            change(&mut message, job, changes)?;
        }
        let retry = Publication::to_exchange(message, exchange, routing_key);
        let consumed = self.queues.iter().find(|one| one.name == queue).cloned();
        Ok(vec![match consumed.and_then(declarable) {
            Some(queue) => retry.declare_queue(queue),
            None => retry,
        }])
    }

    /// Builds the message of a task that this worker was elected to send.
    pub(crate) fn elected(
        &self,
        signature: &WireSignature<'_>,
        now: SystemTime,
    ) -> Result<Publication, ComposeError> {
        let options = CallOptions::from_wire(&signature.options).map_err(EncodeError::new)?;
        let id = options.task_id.clone();
        let id = id.unwrap_or_else(env::uuid);
        let outgoing = Outgoing {
            task: signature.task.clone().into_owned().into(),
            queue: None,
            priority: None,
            options: &options,
            write: &raw_call(&signature.args, &signature.kwargs),
        };
        compose(&self.sender, &outgoing, id, now)
    }

    /// Builds the dead letter of a message that this worker cannot run.
    pub(crate) fn dead_letter(
        &self,
        content: &Content,
        queue: &str,
        rejection: &Rejection,
        now: SystemTime,
    ) -> Result<Vec<Publication>, ComposeError> {
        let mut message = match content {
            Content::Message(message) => message.clone(),
            Content::Malformed { raw, .. } => {
                let mut properties = Properties::default();
                properties.content_type = Cow::Borrowed("application/octet-stream");
                properties.content_encoding = Cow::Borrowed("binary");
                Message::new(celery_protocol::Headers::empty(), properties, raw.clone())
            }
        };
        let headers = [
            ("x-dead-reason", rejection.reason.to_owned()),
            ("x-dead-detail", rejection.detail.clone()),
            ("x-dead-queue", queue.to_owned()),
            ("x-dead-time", time::format(now)),
            ("x-dead-worker", self.hostname.clone()),
        ];
        for (name, value) in headers {
            message
                .headers
                .set(name, Value::Str(value))
                .map_err(|error| unreadable(&error))?;
        }
        message.properties.delivery_tag = None;
        message.properties.delivery_info = celery_protocol::DeliveryInfo::default();
        let name = format!("{queue}{DEAD_SUFFIX}");
        let queue = self.sender.queues.internal(&name);
        Ok(vec![
            Publication::to_queue(message, name).declare_queue(queue),
        ])
    }
}

/// Takes `delivery_info` out of a message's properties and returns the exchange and the
/// routing key with which the message reaches `queue` again. A producer other than kombu may
/// omit `delivery_info`; the message then returns to `queue` through the default exchange.
fn return_address(properties: &mut Properties, queue: &str) -> (String, String) {
    let info = std::mem::take(&mut properties.delivery_info);
    if info.exchange.is_empty() && info.routing_key.is_empty() {
        return (String::new(), queue.to_owned());
    }
    (info.exchange, info.routing_key)
}

/// Applies changes to the message of a retry.
fn change(message: &mut Message, job: &Job, changes: &Changes) -> Result<(), ComposeError> {
    let headers = &mut message.headers;
    let mut set = |name: &str, value: Value| {
        let set = headers.set(name, value);
        set.map_err(|error| unreadable(&error))
    };
    for (name, value) in &changes.headers {
        set(name.as_str().unwrap_or_default(), value.clone())?;
    }
    if let Some(expires) = changes.expires {
        set("expires", time::format(expires).into())?;
    }
    let (Some(args), Some(kwargs)) = (&changes.args, &changes.kwargs) else {
        return Ok(());
    };
    set("argsrepr", repr::args(args).into())?;
    set("kwargsrepr", repr::kwargs(kwargs).into())?;
    let payload = payload(job)?;
    let body = payload.body().map_err(|error| unreadable(&error))?;
    message.body = encode_body(payload.serializer(), args, kwargs, &body.embed)?.into();
    let headers = job.headers().map_err(|error| unreadable(&error))?;
    let compression = headers.compression.as_deref();
    if let Some(compression) = compression.and_then(Compression::from_content_type) {
        message.compress(compression)?;
    }
    Ok(())
}

fn payload(job: &Job) -> Result<Payload<'_>, ComposeError> {
    job.payload().map_err(|error| unreadable(&error).into())
}

fn unreadable(error: &DecodeError) -> EncodeError {
    EncodeError::new(error.to_string())
}
