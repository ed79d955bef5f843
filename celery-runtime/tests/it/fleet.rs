//! Watching and steering workers, as Celery's tools do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{ControlReply, ControlRequest, Event, Map, ReplyAddress, Value};
use celery_runtime::{Broker, Exchange, Mailbox};
use tokio::task::JoinHandle;

use crate::support::{Setup, within};

const REPLIES: &str = "reply.celery.pidbox";

impl Setup {
    /// Sends a command once somebody listens; nobody is to answer.
    pub(crate) async fn tell(&self, method: &str, arguments: impl Into<Arguments>) {
        let mut request = ControlRequest::new(method);
        request.arguments = arguments.into().0;
        self.request(&request).await;
    }

    /// The answer of the only worker there is.
    pub(crate) async fn ask(&self, method: &str, arguments: impl Into<Arguments>) -> Value {
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

    /// The ids of the tasks that the worker names.
    pub(crate) async fn ids(&self, method: &str) -> Vec<String> {
        let answer = self.ask(method, ()).await;
        let tasks = answer.as_array().unwrap().iter();
        let ids = tasks.map(|task| {
            let task = task.as_map().unwrap();
            let request = task.get("request").and_then(Value::as_map).unwrap_or(task);
            request.get("id").and_then(Value::as_str).unwrap()
        });
        ids.map(ToOwned::to_owned).collect()
    }

    /// All events from now on.
    pub(crate) async fn watch(&self) -> Watch {
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
        Watch { events, reader }
    }
}

/// Arguments of a command.
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

/// `{"ok": …}`.
pub(crate) fn ok(text: &str) -> Value {
    let mut map = Map::new();
    map.insert("ok", text);
    Value::Map(map)
}

/// The text of `{"error": …}`.
pub(crate) fn error(answer: &Value) -> &str {
    let text = answer.as_map().and_then(|map| map.get("error")?.as_str());
    text.unwrap_or_else(|| panic!("not refused: {answer:?}"))
}

/// What was told to those who watch.
pub(crate) struct Watch {
    events: Arc<Mutex<Vec<Event>>>,
    reader: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, kind: &str) -> Vec<Event> {
        let all = self.all().into_iter();
        all.filter(|event| event.kind == kind).collect()
    }

    /// What was told of a task, in order.
    pub(crate) fn kinds(&self, id: &str) -> Vec<String> {
        let all = self.all().into_iter();
        all.filter(|event| event.task_id() == Some(id))
            .map(|event| event.kind)
            .collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
