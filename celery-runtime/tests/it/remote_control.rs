//! Helpers for remote control and events.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{ControlReply, ControlRequest, Event, Map, ReplyAddress, Value};
use celery_runtime::{Broker, Exchange, Mailbox};
use tokio::task::JoinHandle;

use crate::support::{Setup, within};

const REPLIES: &str = "reply.celery.pidbox";

impl Setup {
    /// Sends a command without a reply address, once a worker receives commands.
    pub(crate) async fn send_command(&self, method: &str, arguments: impl Into<Arguments>) {
        let mut request = ControlRequest::new(method);
        request.arguments = arguments.into().0;
        self.request(&request).await;
    }

    /// Sends a command and returns the answer of the only worker.
    pub(crate) async fn query(&self, method: &str, arguments: impl Into<Arguments>) -> Value {
        let mut request = ControlRequest::new(method);
        request.arguments = arguments.into().0;
        request.ticket = Some("ticket".to_owned());
        request.reply_to = Some(ReplyAddress::new(REPLIES, "tester"));
        let exchange = Exchange::direct(REPLIES).transient();
        let mailbox = Mailbox::control(format!("tester.{REPLIES}"), exchange, "tester");
        let mut replies = self.broker.subscribe(&mailbox).await.unwrap();
        self.request(&request).await;
        let reply = within(5, replies.next()).await.unwrap();
        let reply = ControlReply::read(&reply).unwrap();
        assert_eq!(reply.ticket, request.ticket);
        reply.value
    }

    async fn request(&self, request: &ControlRequest) {
        let message = request.write().unwrap();
        let exchange = Exchange::fanout("celery.pidbox").transient();
        while self
            .broker
            .broadcast(&exchange, "", &message)
            .await
            .unwrap()
            == Some(0)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends a query and returns the ids of the tasks in the answer.
    pub(crate) async fn ids(&self, method: &str) -> Vec<String> {
        let answer = self.query(method, ()).await;
        let tasks = answer.as_array().unwrap().iter();
        let ids = tasks.map(|task| {
            let task = task.as_map().unwrap();
            let request = task.get("request").and_then(Value::as_map).unwrap_or(task);
            request.get("id").and_then(Value::as_str).unwrap()
        });
        ids.map(ToOwned::to_owned).collect()
    }

    /// Records all events from now on.
    pub(crate) async fn record_events(&self) -> EventRecorder {
        let mailbox = Mailbox::of(Exchange::topic("celeryev"), "#");
        let mut messages = self.broker.subscribe(&mailbox).await.unwrap();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = Arc::clone(&events);
        let reader = tokio::spawn(async move {
            while let Ok(message) = messages.next().await {
                let read = Event::read_all(&message).unwrap();
                seen.lock().unwrap().extend(read);
            }
        });
        EventRecorder { events, reader }
    }
}

/// The arguments of a command.
pub(crate) struct Arguments(Map);

impl From<()> for Arguments {
    fn from((): ()) -> Self {
        Self(Map::new())
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Arguments {
    fn from(pairs: [(&str, Value); N]) -> Self {
        let mut map = Map::new();
        for (name, value) in pairs {
            map.insert(name, value);
        }
        Self(map)
    }
}

/// Returns the answer `{"ok": text}`.
pub(crate) fn ok(text: &str) -> Value {
    let mut map = Map::new();
    map.insert("ok", text);
    Value::Map(map)
}

/// Returns the text of the answer `{"error": text}`.
pub(crate) fn error(answer: &Value) -> &str {
    let text = answer.as_map().and_then(|map| map.get("error")?.as_str());
    text.unwrap_or_else(|| panic!("not refused: {answer:?}"))
}

/// The recorded events.
pub(crate) struct EventRecorder {
    events: Arc<Mutex<Vec<Event>>>,
    reader: JoinHandle<()>,
}

impl EventRecorder {
    pub(crate) fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, kind: &str) -> Vec<Event> {
        let all = self.all().into_iter();
        all.filter(|event| event.kind == kind).collect()
    }

    /// Returns the kinds of the events of a task, in order.
    pub(crate) fn kinds(&self, id: &str) -> Vec<String> {
        let all = self.all().into_iter();
        all.filter(|event| event.task_id() == Some(id))
            .map(|event| event.kind)
            .collect()
    }
}

impl Drop for EventRecorder {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
