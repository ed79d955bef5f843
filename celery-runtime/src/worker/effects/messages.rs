//! Messages that are made from the one that came: the retry, and the copy of one
//! that nobody could run. Pure.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::{
    Compression, DecodeError, EncodeError, Message, Payload, Properties, Value, WireSignature,
    encode_body, repr, time,
};

use crate::boundary::{Content, Publication, Queue};
use crate::canvas::options::CallOptions;
use crate::client::compose::{ComposeError, Outgoing, Sender, compose, declarable, raw_call};
use crate::env;
use crate::execution::{Changes, Job};
use crate::worker::delivery::event::Rejection;

/// Appended to a queue's name for the messages that no worker could run.
///
/// Such a message is the one that came, byte for byte in its body, with five
/// headers more; sent on without them it runs as if nothing had happened.
const DEAD_SUFFIX: &str = ".dead";

/// RabbitMQ's notes on dead-lettering belong to one message, not to a retry.
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

/// Who sends, with which settings.
#[derive(Debug)]
pub(crate) struct MessageFactory {
    pub(crate) sender: Sender,
    pub(crate) hostname: String,
    /// What the worker consumes.
    pub(crate) queues: Vec<Arc<Queue>>,
}

impl MessageFactory {
    /// The same task again, at `eta` or at once, the way by which it came to
    /// `queue`. Its message is the one that came but for the `changes`.
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
        // Sent from inside itself, so Celery makes the task its own parent.
        headers
            .parent_id
            .get_or_insert_with(|| Cow::Owned(job.id.clone()));
        headers
            .extra
            .retain(|(name, _)| !NOT_COPIED.contains(&&**name));

        let mut properties = job.message.properties.clone();
        let came_by = std::mem::take(&mut properties.delivery_info);
        properties.delivery_tag = None;
        let mut message = Message::new(headers.into(), properties, job.message.body.clone());
        if let Some(changes) = changes {
            change(&mut message, job, changes)?;
        }
        let again = Publication::to_exchange(message, came_by.exchange, came_by.routing_key);
        let consumed = self.queues.iter().find(|one| one.name == queue).cloned();
        Ok(vec![match consumed.and_then(declarable) {
            Some(queue) => again.declare_queue(queue),
            None => again,
        }])
    }

    /// The call that the workers elected this one to send.
    pub(crate) fn elected(
        &self,
        signature: &WireSignature<'_>,
        now: SystemTime,
    ) -> Result<Publication, ComposeError> {
        let options = CallOptions::from_wire(&signature.options).map_err(EncodeError::new)?;
        let id = options.task_id.clone();
        let id = id.unwrap_or_else(|| env::uuid());
        let outgoing = Outgoing {
            task: signature.task.clone().into_owned().into(),
            queue: None,
            priority: None,
            options: &options,
            write: &raw_call(&signature.args, &signature.kwargs),
        };
        compose(&self.sender, &outgoing, id, now)
    }

    /// A message that cannot be run, for the queue of dead ones.
    pub(crate) fn dead(
        &self,
        content: &Content,
        queue: &str,
        refusal: &Rejection,
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
        let notes = [
            ("x-dead-reason", refusal.reason.to_owned()),
            ("x-dead-detail", refusal.detail.clone()),
            ("x-dead-queue", queue.to_owned()),
            ("x-dead-time", time::format(now)),
            ("x-dead-worker", self.hostname.clone()),
        ];
        for (name, note) in notes {
            message
                .headers
                .set(name, Value::Str(note))
                .map_err(|error| unreadable(&error))?;
        }
        message.properties.delivery_tag = None;
        message.properties.delivery_info = celery_protocol::DeliveryInfo::default();
        let dead = format!("{queue}{DEAD_SUFFIX}");
        let queue = self.sender.queues.internal(&dead);
        Ok(vec![
            Publication::to_queue(message, dead).declare_queue(queue),
        ])
    }
}

/// Makes the message of a retry differ from the one that came.
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
    let came = payload(job)?;
    let body = came.body().map_err(|error| unreadable(&error))?;
    message.body = encode_body(came.serializer(), args, kwargs, &body.embed)?.into();
    let came = job.headers().map_err(|error| unreadable(&error))?;
    let compression = came.compression.as_deref();
    if let Some(compression) = compression.and_then(Compression::from_content_type) {
        message.compress(compression)?;
    }
    Ok(())
}

fn payload(job: &Job) -> Result<Payload<'_>, ComposeError> {
    let services = &job.services;
    let payload = job.message.payload(&services.accept, services.body_limit);
    payload.map_err(|error| unreadable(&error).into())
}

fn unreadable(error: &DecodeError) -> EncodeError {
    EncodeError::new(error.to_string())
}
