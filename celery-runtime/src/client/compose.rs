//! From a call to its message. Pure: ids and time are arguments.

use std::borrow::Cow;
use std::time::SystemTime;

use celery_protocol::{Embed, EncodeError, Headers, Message, Raw, Serializer, TaskHeaders, time};

use super::options::{CallOptions, Time};
use crate::broker::{ExchangeKind, Publication};
use crate::config::{Config, TaskProtocol};
use crate::routing::Route;
use crate::task::{Call, CallWriter};

/// Who sends.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// `gen<pid>@<hostname>`.
    pub(crate) origin: String,
    /// The queue for replies: the rpc backend's, else an id of this sender,
    /// since Celery fills the property always.
    pub(crate) reply_to: String,
}

/// What is sent: a task's name and how to write its arguments.
pub(crate) struct Outgoing<'a> {
    pub(crate) task: Cow<'static, str>,
    /// The queue and priority of the task's declaration.
    pub(crate) queue: Option<&'a str>,
    pub(crate) priority: Option<u8>,
    pub(crate) options: &'a CallOptions,
    pub(crate) write: &'a dyn Fn(&CallWriter<'_>) -> Result<Call, EncodeError>,
}

/// Builds the message of a call and finds its way.
///
/// # Errors
///
/// When an argument has no form in the serializer, or the compression's
/// feature is off.
pub(crate) fn compose(
    config: &Config,
    sender: &Sender,
    outgoing: &Outgoing<'_>,
    id: String,
    now: SystemTime,
) -> Result<Publication, EncodeError> {
    let options = outgoing.options;
    let route = config.task_routes.find(&outgoing.task);
    let serializer = options.serializer.unwrap_or(config.task_serializer);
    let expires = options.expires.map(|expires| expires.from(now));

    let mut headers = headers(outgoing, sender, id, now);
    headers.expires = expires.map(|time| Cow::Owned(time::format(time)));
    let embed = &options.embed;
    let call = match config.task_protocol {
        TaskProtocol::V1 => (outgoing.write)(&CallWriter::new(serializer, embed).v1(&headers))?,
        TaskProtocol::V2 => (outgoing.write)(&CallWriter::new(serializer, embed))?,
    };
    let mut message = message(config.task_protocol, headers, serializer, call);
    for (name, value) in &options.headers {
        let name = name.as_str().unwrap_or_default();
        message
            .headers
            .set(name, value.clone())
            .map_err(|error| EncodeError::new(error.to_string()))?;
    }
    if let Some(compression) = options.compression.or(config.task_compression) {
        message.compress(compression)?;
    }
    let properties = &mut message.properties;
    properties.reply_to = Some(sender.reply_to.clone());
    properties.expiration = expires.map(|time| milliseconds_until(time, now));
    // Celery always writes a priority; unset is 0.
    let priority = options
        .priority
        .or(route.and_then(|route| route.priority))
        .or(outgoing.priority)
        .or(config.task.priority);
    properties.priority = Some(priority.unwrap_or(0));
    let (exchange, routing_key) = destination(config, outgoing, route);
    Ok(Publication::to_exchange(message, exchange, routing_key))
}

fn headers(
    outgoing: &Outgoing<'_>,
    sender: &Sender,
    id: String,
    now: SystemTime,
) -> TaskHeaders<'static> {
    let options = outgoing.options;
    let own = |text: &Option<String>| text.clone().map(Cow::Owned);
    let mut headers = TaskHeaders::new(outgoing.task.clone(), id);
    headers.shadow = own(&options.shadow);
    headers.eta = options
        .eta
        .map(|eta: Time| Cow::Owned(time::format(eta.from(now))));
    headers.group = own(&options.group_id);
    headers.group_index = options.group_index;
    headers.retries = options.retries;
    headers.timelimit.hard = options.time_limit.map(|limit| limit.as_secs_f64());
    headers.timelimit.soft = options.soft_time_limit.map(|limit| limit.as_secs_f64());
    if options.root_id.is_some() {
        headers.root_id = own(&options.root_id);
    }
    headers.parent_id = own(&options.parent_id);
    headers.origin = Some(Cow::Owned(sender.origin.clone()));
    headers.ignore_result = options.ignore_result;
    headers
}

fn message(
    protocol: TaskProtocol,
    mut headers: TaskHeaders<'static>,
    serializer: Serializer,
    call: Call,
) -> Message {
    match protocol {
        TaskProtocol::V2 => {
            headers.argsrepr = Some(Cow::Owned(call.argsrepr));
            headers.kwargsrepr = Some(Cow::Owned(call.kwargsrepr));
            Message::task(headers, serializer, call.body)
        }
        TaskProtocol::V1 => {
            let id = headers.id.into_owned();
            let mut message = Message::task(TaskHeaders::new("", id), serializer, call.body);
            message.headers = Headers::empty();
            message
        }
    }
}

/// The call's own word first, then the route's, then the declaration's, then
/// the default. A direct queue is reached through the anonymous exchange, as
/// Celery does.
fn destination(
    config: &Config,
    outgoing: &Outgoing<'_>,
    route: Option<&Route>,
) -> (String, String) {
    let options = outgoing.options;
    let exchange = options
        .exchange
        .clone()
        .or_else(|| route.and_then(|route| route.exchange.clone()));
    let routing_key = options
        .routing_key
        .clone()
        .or_else(|| route.and_then(|route| route.routing_key.clone()));
    let queue = options
        .queue
        .as_deref()
        .or_else(|| route.and_then(|route| route.queue.as_deref()))
        .or(outgoing.queue)
        .unwrap_or(&config.task_default_queue);
    if let Some(exchange) = exchange {
        return (exchange, routing_key.unwrap_or_else(|| queue.to_owned()));
    }
    let queue = config.queue(queue);
    match queue.exchange.kind {
        ExchangeKind::Direct => (String::new(), queue.name),
        _ => (
            queue.exchange.name,
            routing_key.unwrap_or(queue.routing_key),
        ),
    }
}

/// `str(int(seconds * 1000))`, and `0` for what is past.
fn milliseconds_until(time: SystemTime, now: SystemTime) -> String {
    let left = time.duration_since(now).unwrap_or_default();
    left.as_millis().to_string()
}

/// Writes arguments that are there as text of a message already.
pub(crate) fn raw_call<'a>(
    args: &'a Raw<'a>,
    kwargs: &'a Raw<'a>,
) -> impl Fn(&CallWriter<'_>) -> Result<Call, EncodeError> + 'a {
    move |writer| writer.write(args, kwargs)
}

/// The arguments of a call by themselves, for a signature on the wire.
pub(crate) fn arguments_of(
    write: &dyn Fn(&CallWriter<'_>) -> Result<Call, EncodeError>,
) -> Result<(Raw<'static>, Raw<'static>), EncodeError> {
    let embed = Embed::default();
    let call = write(&CallWriter::new(Serializer::Json, &embed))?;
    let read = || {
        let raw = Raw::read(Serializer::Json, &call.body)?;
        let body = celery_protocol::Body::read(&raw)?;
        Ok((body.args.into_owned(), body.kwargs.into_owned()))
    };
    read().map_err(|error: celery_protocol::DecodeError| EncodeError::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::routing::Routes;

    fn sent(config: &Config, queue: Option<&str>, options: &CallOptions) -> Publication {
        let sender = Sender {
            origin: "gen1@host".to_owned(),
            reply_to: "replies".to_owned(),
        };
        let outgoing = Outgoing {
            task: "tasks.add".into(),
            queue,
            priority: None,
            options,
            write: &|writer| writer.write(&(2, 3), &()),
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        compose(config, &sender, &outgoing, "id-1".to_owned(), now).unwrap()
    }

    #[test]
    fn a_plain_call_looks_like_celerys() {
        let publication = sent(&Config::new(), None, &CallOptions::default());
        assert_eq!(publication.exchange, "");
        assert_eq!(publication.routing_key, "celery");
        let message = publication.message;
        let headers = message.headers.task().unwrap().unwrap();
        assert_eq!(headers.argsrepr.as_deref(), Some("(2, 3)"));
        assert_eq!(headers.kwargsrepr.as_deref(), Some("{}"));
        assert_eq!(headers.root_id.as_deref(), Some("id-1"));
        assert_eq!(message.properties.priority, Some(0));
        assert_eq!(message.properties.correlation_id.as_deref(), Some("id-1"));
    }

    #[test]
    fn countdown_and_expiry_become_times() {
        let options = CallOptions {
            eta: Some(Time::In(Duration::from_secs(10))),
            expires: Some(Time::In(Duration::from_millis(60_500))),
            ..CallOptions::default()
        };
        let publication = sent(&Config::new(), None, &options);
        let headers = publication.message.headers.task().unwrap().unwrap();
        assert_eq!(headers.eta.as_deref(), Some("2001-09-09T01:46:50+00:00"));
        assert_eq!(
            headers.expires.as_deref(),
            Some("2001-09-09T01:47:40.500000+00:00")
        );
        let expiration = publication.message.properties.expiration;
        assert_eq!(expiration.as_deref(), Some("60500"));
    }

    #[test]
    fn the_call_goes_before_route_declaration_and_default() {
        let routed = Config::new().task_routes(Routes::new().route("tasks.*", "routed"));
        let asked = CallOptions {
            queue: Some("asked".to_owned()),
            ..CallOptions::default()
        };
        let (none, plain) = (CallOptions::default(), Config::new());
        let key = |config, queue, options| sent(config, queue, options).routing_key;
        assert_eq!(key(&routed, Some("declared"), &asked), "asked");
        assert_eq!(key(&routed, Some("declared"), &none), "routed");
        assert_eq!(key(&plain, Some("declared"), &none), "declared");
        assert_eq!(key(&plain, None, &none), "celery");
    }

    #[test]
    fn protocol_1_has_everything_in_the_body() {
        let config = Config::new().set("task_protocol", 1).unwrap();
        let message = sent(&config, None, &CallOptions::default()).message;
        assert!(message.headers.is_empty());
        let body = std::str::from_utf8(&message.body).unwrap();
        assert!(body.contains("\"task\""), "{body}");
        assert_eq!(message.properties.correlation_id.as_deref(), Some("id-1"));
    }
}
