//! Composing the message of a call. Pure: ids and time are arguments.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::{EncodeError, Headers, Message, Raw, Serializer, TaskHeaders, time};

use crate::boundary::{ExchangeKind, Publication, Queue};
use crate::canvas::options::{CallOptions, Time};
use crate::canvas::{PlannedTask, TaskCall};
use crate::config::{Config, TaskProtocol};
use crate::env;
use crate::queues::{QueueNotFound, Queues};
use crate::routing::Route;
use crate::task::{ArgumentEncoder, EncodedArguments};

/// The identity and settings of the sender.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) config: Arc<Config>,
    pub(crate) queues: Arc<Queues>,
    /// `gen<pid>@<hostname>`.
    pub(crate) origin: String,
    /// The reply queue: that of the `rpc` backend, otherwise an id of this sender, because Celery
    /// always sets the property.
    pub(crate) reply_to: String,
}

/// A call to send: the name of the task and a function that encodes the arguments.
pub(crate) struct Outgoing<'a> {
    pub(crate) task: Cow<'static, str>,
    /// The queue and priority of the task's declaration.
    pub(crate) queue: Option<&'a str>,
    pub(crate) priority: Option<u8>,
    pub(crate) options: &'a CallOptions,
    pub(crate) write: &'a dyn Fn(&ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError>,
}

/// An error in composing a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComposeError {
    /// The serializer cannot express an argument, or the feature of the compression is disabled.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The queue is not declared and must not be created.
    #[error(transparent)]
    Queue(#[from] QueueNotFound),
}

/// Composes the message of a call and determines its destination.
///
/// # Errors
///
/// See [`ComposeError`].
pub(crate) fn compose(
    sender: &Sender,
    outgoing: &Outgoing<'_>,
    id: String,
    now: SystemTime,
) -> Result<Publication, ComposeError> {
    let route = sender.config.task_routes.find(&outgoing.task);
    let destination = destination(&sender.queues, outgoing.queue, outgoing.options, route)?;
    Ok(compose_for(sender, outgoing, destination, id, now)?)
}

fn compose_for(
    sender: &Sender,
    outgoing: &Outgoing<'_>,
    destination: MessageDestination,
    id: String,
    now: SystemTime,
) -> Result<Publication, EncodeError> {
    let (config, options) = (&*sender.config, outgoing.options);
    let route = config.task_routes.find(&outgoing.task);
    let serializer = options.serializer.unwrap_or(config.task_serializer);
    let expires = options.expires.map(|expires| expires.from(now));

    let mut headers = headers(outgoing, sender, id, now)?;
    headers.expires = expires.map(|time| Cow::Owned(time::format(time)));
    let embed = &options.embed;
    let call = match config.task_protocol {
        TaskProtocol::V1 => {
            (outgoing.write)(&ArgumentEncoder::new(serializer, embed).v1(&headers))?
        }
        TaskProtocol::V2 => (outgoing.write)(&ArgumentEncoder::new(serializer, embed))?,
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
    let reply_to = options.reply_to.as_ref().unwrap_or(&sender.reply_to);
    properties.reply_to = Some(reply_to.clone());
    properties.expiration = expires.map(|time| milliseconds_until(time, now));
    // Celery always sets a priority; the default is 0.
    let priority = options
        .priority
        .or(route.and_then(|route| route.priority))
        .or(outgoing.priority)
        .or(config.task.priority);
    properties.priority = Some(priority.unwrap_or(0));
    properties.delivery_mode = Some(config.task_default_delivery_mode);
    let publication =
        Publication::to_exchange(message, destination.exchange, destination.routing_key);
    Ok(match destination.queue.and_then(declarable) {
        Some(queue) => publication.declare_queue(queue),
        None => publication,
    })
}

/// A planned task with the destination of its message.
pub(crate) struct RoutedTask {
    pub(crate) call: Box<TaskCall>,
    pub(crate) options: CallOptions,
    destination: MessageDestination,
}

impl RoutedTask {
    /// Determines the destination.
    ///
    /// # Errors
    ///
    /// Fails if the queue is not declared and must not be created.
    pub(crate) fn new(sender: &Sender, task: PlannedTask) -> Result<Self, QueueNotFound> {
        let PlannedTask { call, mut options } = task;
        // A task that calls another one in place, such as `celery.map`, uses the route of that one.
        let routes = &sender.config.task_routes;
        if let Some(inner) = &call.routed_as
            && routes.find(&call.task).is_none()
            && let Some(route) = routes.find(inner)
        {
            let set_default = |call: &mut Option<String>, route: &Option<String>| {
                if call.is_none() {
                    call.clone_from(route);
                }
            };
            set_default(&mut options.queue, &route.queue);
            set_default(&mut options.exchange, &route.exchange);
            set_default(&mut options.routing_key, &route.routing_key);
            options.priority = options.priority.or(route.priority);
        }
        let route = routes.find(&call.task);
        let queue = call.queue.as_deref();
        let destination = destination(&sender.queues, queue, &options, route)?;
        Ok(Self {
            call,
            options,
            destination,
        })
    }

    /// Returns the exchange and the routing key.
    pub(crate) fn target(&self) -> (&str, &str) {
        let destination = &self.destination;
        (&destination.exchange, &destination.routing_key)
    }

    /// Composes the message. Also returns the id of the task.
    ///
    /// # Errors
    ///
    /// Fails if the serializer cannot express an argument, or if the feature of the compression is
    /// disabled.
    pub(crate) fn compose(
        mut self,
        sender: &Sender,
        now: SystemTime,
    ) -> Result<(String, Publication), EncodeError> {
        let id = self.options.task_id.take().unwrap_or_else(env::uuid);
        let call = &self.call;
        let outgoing = Outgoing {
            task: Cow::clone(&call.task),
            queue: call.queue.as_deref(),
            priority: call.priority,
            options: &self.options,
            write: &|writer| call.write(writer),
        };
        let publication = compose_for(sender, &outgoing, self.destination, id.clone(), now)?;
        Ok((id, publication))
    }
}

/// Returns the queue if the sender declares it. A broadcast queue is declared by its consumers.
pub(crate) fn declarable(queue: Arc<Queue>) -> Option<Arc<Queue>> {
    (!queue.is_broadcast()).then_some(queue)
}

fn headers(
    outgoing: &Outgoing<'_>,
    sender: &Sender,
    id: String,
    now: SystemTime,
) -> Result<TaskHeaders<'static>, EncodeError> {
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
    headers.replaced_task_nesting = options.replaced_task_nesting;
    let stamps = &options.stamps;
    if !stamps.is_empty() {
        let names: Vec<_> = stamps.keys().collect();
        headers.stamped_headers = Some(Raw::encode(Serializer::Json, &names)?);
        headers.stamps = Some(Raw::encode(Serializer::Json, stamps)?);
    }
    Ok(headers)
}

fn message(
    protocol: TaskProtocol,
    mut headers: TaskHeaders<'static>,
    serializer: Serializer,
    call: EncodedArguments,
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

/// The destination of a message.
struct MessageDestination {
    exchange: String,
    routing_key: String,
    /// `None` if a route names an exchange and no queue.
    queue: Option<Arc<Queue>>,
}

/// Determines the destination by the rules of Celery: the options of the call override the route,
/// the route overrides the declaration, and that the default queue. Unless both exchange and
/// routing key are set, a message to a direct queue goes through the default exchange, and a
/// message to any other queue through the exchange of the queue.
fn destination(
    queues: &Queues,
    declared_queue: Option<&str>,
    options: &CallOptions,
    route: Option<&Route>,
) -> Result<MessageDestination, QueueNotFound> {
    let choose = |call: &Option<String>, routed: fn(&Route) -> &Option<String>| {
        let routed = route.and_then(|route| routed(route).clone());
        call.clone().or(routed).filter(|name| !name.is_empty())
    };
    let exchange = choose(&options.exchange, |route| &route.exchange);
    let routing_key = choose(&options.routing_key, |route| &route.routing_key);
    let queue = choose(&options.queue, |route| &route.queue);
    let queue = queue.as_deref().or(declared_queue);

    if let (Some(exchange), Some(routing_key)) = (&exchange, &routing_key) {
        let queue = match queue {
            Some(queue) => Some(queues.find(queue)?),
            None if route.is_some() => None,
            None => Some(queues.default_queue()?),
        };
        return Ok(MessageDestination {
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
            queue,
        });
    }
    let queue = queue.map_or_else(|| queues.default_queue(), |name| queues.find(name))?;
    let kind = route.and_then(|route| route.exchange_type);
    let (exchange, routing_key) = match kind.unwrap_or(queue.exchange.kind) {
        ExchangeKind::Direct => (String::new(), queue.name.clone()),
        _ => (
            exchange.unwrap_or_else(|| queue.exchange.name.clone()),
            routing_key.unwrap_or_else(|| queue.routing_key.clone()),
        ),
    };
    Ok(MessageDestination {
        exchange,
        routing_key,
        queue: Some(queue),
    })
}

/// Returns the milliseconds until `time` as text, as `str(int(seconds * 1000))` in Celery; `0` if
/// it is past.
fn milliseconds_until(time: SystemTime, now: SystemTime) -> String {
    let left = time.duration_since(now).unwrap_or_default();
    left.as_millis().to_string()
}

/// Returns a function that encodes arguments which are encoded already.
pub(crate) fn raw_call<'a>(
    args: &'a Raw<'a>,
    kwargs: &'a Raw<'a>,
) -> impl Fn(&ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError> + 'a {
    move |writer| writer.write(args, kwargs)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::boundary::Exchange;
    use crate::routing::Routes;

    fn sent(config: &Config, queue: Option<&str>, options: &CallOptions) -> Publication {
        try_sent(config, queue, options).unwrap()
    }

    fn try_sent(
        config: &Config,
        queue: Option<&str>,
        options: &CallOptions,
    ) -> Result<Publication, ComposeError> {
        let sender = Sender {
            queues: Arc::new(Queues::new(&config.queues)),
            config: Arc::new(config.clone()),
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
        compose(&sender, &outgoing, "id-1".to_owned(), now)
    }

    #[test]
    fn call_without_options_is_composed_as_by_celery() {
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
    fn countdown_and_expires_are_converted_to_times() {
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
    fn call_overrides_route_declaration_and_default() {
        let routed = Config::new().task_routes(Routes::new().route("tasks.*", "routed"));
        let with_queue = CallOptions {
            queue: Some("called".to_owned()),
            ..CallOptions::default()
        };
        let (none, plain) = (CallOptions::default(), Config::new());
        let key = |config, queue, options| sent(config, queue, options).routing_key;
        assert_eq!(key(&routed, Some("declared"), &with_queue), "called");
        assert_eq!(key(&routed, Some("declared"), &none), "routed");
        assert_eq!(key(&plain, Some("declared"), &none), "declared");
        assert_eq!(key(&plain, None, &none), "celery");
    }

    /// Returns exchange, routing key and the queue to declare.
    fn destination_of(config: &Config, options: &CallOptions) -> (String, String, Option<String>) {
        let sent = sent(config, None, options);
        let queue = sent.queue.map(|queue| queue.name.clone());
        (sent.exchange, sent.routing_key, queue)
    }

    fn call(queue: Option<&str>, exchange: Option<&str>, key: Option<&str>) -> CallOptions {
        CallOptions {
            queue: queue.map(str::to_owned),
            exchange: exchange.map(str::to_owned),
            routing_key: key.map(str::to_owned),
            ..CallOptions::default()
        }
    }

    fn expect(exchange: &str, key: &str, queue: Option<&str>) -> (String, String, Option<String>) {
        (exchange.into(), key.into(), queue.map(str::to_owned))
    }

    #[test]
    fn direct_queue_uses_default_exchange() {
        let config = Config::new();
        for (options, expected) in [
            (call(None, None, None), expect("", "celery", Some("celery"))),
            (call(Some("q"), None, None), expect("", "q", Some("q"))),
            // As in Celery, only one of exchange and routing key has no effect.
            (call(Some("q"), None, Some("k")), expect("", "q", Some("q"))),
            (call(Some("q"), Some("e"), None), expect("", "q", Some("q"))),
            (
                call(Some("q"), Some("e"), Some("k")),
                expect("e", "k", Some("q")),
            ),
            (
                call(None, Some("e"), Some("k")),
                expect("e", "k", Some("celery")),
            ),
        ] {
            assert_eq!(destination_of(&config, &options), expected);
        }
    }

    #[test]
    fn topic_queue_uses_its_exchange() {
        let topic = Queue::new("q").bound_to(Exchange::topic("logs"), "log.*");
        let config = Config::new().task_queues([topic]);
        for (options, expected) in [
            (
                call(Some("q"), None, None),
                expect("logs", "log.*", Some("q")),
            ),
            (
                call(Some("q"), None, Some("log.a")),
                expect("logs", "log.a", Some("q")),
            ),
            (
                call(Some("q"), Some("e"), None),
                expect("e", "log.*", Some("q")),
            ),
            // The default queue is not one of `task_queues` and is created.
            (call(None, None, None), expect("", "celery", Some("celery"))),
        ] {
            assert_eq!(destination_of(&config, &options), expected);
        }
    }

    #[test]
    fn route_sets_exchange_type_and_routing_key() {
        let route = serde_json::json!({"tasks.*": {
            "exchange": "media", "exchange_type": "topic", "routing_key": "a.b",
        }});
        let config = Config::new().set("task_routes", route).unwrap();
        let (none, keyed) = (call(None, None, None), call(Some("q"), None, Some("k")));
        assert_eq!(destination_of(&config, &none), expect("media", "a.b", None));
        assert_eq!(
            destination_of(&config, &keyed),
            expect("media", "k", Some("q"))
        );
    }

    #[test]
    fn broadcast_queue_uses_its_exchange_and_is_not_declared() {
        let config = Config::new().task_queues([Queue::broadcast("news")]);
        let news = call(Some("news"), None, None);
        assert_eq!(
            destination_of(&config, &news),
            expect("news", "celery", None)
        );
    }

    #[test]
    fn unknown_queue_is_rejected_when_creation_is_disabled() {
        let config = Config::new()
            .set("task_create_missing_queues", false)
            .unwrap();
        assert!(try_sent(&config, None, &CallOptions::default()).is_ok());
        let error = try_sent(&config, Some("q"), &CallOptions::default()).unwrap_err();
        assert!(matches!(error, ComposeError::Queue(_)), "{error}");
    }

    #[test]
    fn delivery_mode_follows_its_setting() {
        let mode = |value: serde_json::Value| {
            let config = Config::new().set("task_default_delivery_mode", value);
            let sent = sent(&config.unwrap(), None, &CallOptions::default());
            sent.message.properties.delivery_mode
        };
        assert_eq!(mode(2.into()), Some(2));
        assert_eq!(mode("transient".into()), Some(1));
        assert_eq!(mode("1".into()), Some(1));
    }

    #[test]
    fn protocol_1_message_has_all_fields_in_body() {
        let config = Config::new().set("task_protocol", 1).unwrap();
        let message = sent(&config, None, &CallOptions::default()).message;
        assert!(message.headers.is_empty());
        let body = std::str::from_utf8(&message.body).unwrap();
        assert!(body.contains("\"task\""), "{body}");
        assert_eq!(message.properties.correlation_id.as_deref(), Some("id-1"));
    }
}
