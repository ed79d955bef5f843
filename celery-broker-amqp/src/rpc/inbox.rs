//! Replies that have come, and those who wait for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;

use celery_protocol::{DecodeError, Message, ResultDocument, Serializer, State};
use celery_runtime::{ServiceError, ServiceErrorKind};
use tokio::sync::oneshot;

use crate::sync::lock;

/// So many results stay after they were read, to be read again.
const READ_LIMIT: usize = 1_000;

/// Larger bodies are no results.
const MAX_BODY_LEN: usize = 512 << 20;

/// The replies of one client.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    unread_limit: usize,
}

#[derive(Debug, Default)]
struct InboxState {
    documents: HashMap<String, ResultDocument<'static>>,
    /// Tasks whose documents were not read yet, in the order in which they
    /// came. An entry counts as long as its task has a document.
    unread: VecDeque<String>,
    read: VecDeque<String>,
    waiters: BTreeMap<String, Vec<ReplySender<ResultDocument<'static>>>>,
    markers: BTreeMap<String, ReplySender<()>>,
    /// Why nothing comes at the moment.
    broken: Option<ServiceError>,
    dropped: u64,
}

type ReplySender<T> = oneshot::Sender<Result<T, ServiceError>>;
type ReplyReceiver<T> = oneshot::Receiver<Result<T, ServiceError>>;

/// The result of a task, or the place where it will arrive.
pub(super) enum ReplySlot {
    Ready(Box<ResultDocument<'static>>),
    Pending(ReplyReceiver<ResultDocument<'static>>),
}

impl Inbox {
    pub(super) fn new(unread_limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            unread_limit,
        }
    }

    /// A reply came.
    pub(super) fn handle_message(&self, message: &Message) {
        let mut state = lock(&self.state);
        let id = message.properties.correlation_id.as_deref();
        if let Some(marker) = id.and_then(|id| state.markers.remove(id)) {
            // Whoever sent it may have left.
            let _ = marker.send(Ok(()));
            return;
        }
        match decode_reply(message) {
            Ok(document) => state.store(document, self.unread_limit),
            Err(error) => {
                tracing::warn!(
                    "a reply for task {} is unreadable: {error}",
                    id.unwrap_or("?")
                );
                state.reject(id.unwrap_or_default(), &error);
            }
        }
    }

    /// Whether replies come.
    pub(super) fn is_open(&self) -> bool {
        lock(&self.state).broken.is_none()
    }

    /// Replies come from now on.
    pub(super) fn open(&self) {
        lock(&self.state).broken = None;
    }

    /// Nothing comes any more: those who wait have to ask again, and so has
    /// everybody until it is opened.
    pub(super) fn fail(&self, error: &ServiceError) {
        let mut state = lock(&self.state);
        state.broken = Some(error.clone());
        for waiters in std::mem::take(&mut state.waiters).into_values() {
            complete(waiters, || Err(error.clone()));
        }
        let markers = std::mem::take(&mut state.markers);
        complete(markers.into_values(), || Err(error.clone()));
    }

    /// The last that is known of a task.
    pub(super) fn document(&self, id: &str) -> Option<ResultDocument<'static>> {
        lock(&self.state).documents.get(id).cloned()
    }

    /// The final document of a task.
    pub(super) fn wait_for(&self, id: &str) -> ReplySlot {
        let mut state = lock(&self.state);
        if let Some(document) = state.documents.get(id).filter(|one| one.status.is_ready()) {
            let document = Box::new(document.clone());
            state.mark_read(id);
            return ReplySlot::Ready(document);
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(error) = &state.broken {
            complete([sender], || Err(error.clone()));
            return ReplySlot::Pending(receiver);
        }
        let waiters = state.waiters.entry(id.to_owned()).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        ReplySlot::Pending(receiver)
    }

    pub(super) fn expect_marker(&self, id: &str) -> ReplyReceiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        if let Some(error) = &state.broken {
            complete([sender], || Err(error.clone()));
        } else {
            state.markers.insert(id.to_owned(), sender);
        }
        receiver
    }

    pub(super) fn forget(&self, ids: &[String]) {
        let mut state = lock(&self.state);
        for id in ids {
            state.documents.remove(id);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.state).dropped
    }
}

impl InboxState {
    fn store(&mut self, document: ResultDocument<'static>, unread_limit: usize) {
        let id = document.task_id.clone().into_owned();
        let known = self.documents.get(&id);
        if known.is_some_and(|known| known.status == State::Success) {
            return;
        }
        let is_new = known.is_none();
        let waiters = match document.status.is_ready() {
            true => self.waiters.remove(&id).unwrap_or_default(),
            false => Vec::new(),
        };
        let was_read = complete(waiters, || Ok(document.clone()));
        self.documents.insert(id.clone(), document);
        if is_new {
            self.unread.push_back(id.clone());
            self.drop_oldest(unread_limit);
        }
        if was_read {
            self.mark_read(&id);
        }
    }

    /// Results that were read make room before any that was not.
    fn mark_read(&mut self, id: &str) {
        self.read.push_back(id.to_owned());
        if self.read.len() > READ_LIMIT
            && let Some(oldest) = self.read.pop_front()
            && !self.read.contains(&oldest)
        {
            self.documents.remove(&oldest);
        }
    }

    fn drop_oldest(&mut self, unread_limit: usize) {
        while self.unread.len() > unread_limit {
            let oldest = self.unread.pop_front().unwrap_or_default();
            let was_read = self.read.contains(&oldest);
            if !was_read && self.documents.remove(&oldest).is_some() {
                self.dropped += 1;
            }
        }
    }

    fn reject(&mut self, id: &str, error: &DecodeError) {
        self.dropped += 1;
        let waiters = self.waiters.remove(id).unwrap_or_default();
        complete(waiters, || {
            let object = format!("the result of task {id}");
            let cause = error.to_string();
            Err(ServiceError::new(
                ServiceErrorKind::Invalid,
                "read",
                object,
                cause,
            ))
        });
    }
}

/// Tells everybody who still waits, and whether there was one.
fn complete<T>(
    waiters: impl IntoIterator<Item = ReplySender<T>>,
    what: impl Fn() -> Result<T, ServiceError>,
) -> bool {
    let mut heard = false;
    for waiter in waiters {
        heard |= waiter.send(what()).is_ok();
    }
    heard
}

fn decode_reply(message: &Message) -> Result<ResultDocument<'static>, DecodeError> {
    let serializer = Serializer::from_content_type(&message.properties.content_type);
    let serializer = serializer.unwrap_or(Serializer::Json);
    Ok(ResultDocument::decode(serializer, &message.body, MAX_BODY_LEN)?.into_owned())
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Headers, Properties, Raw};

    use super::*;

    fn reply(id: &str, state: State) -> Message {
        let document = ResultDocument::new(id.to_owned(), state, Raw::json("1"));
        let mut properties = Properties::default();
        properties.correlation_id = Some(id.to_owned());
        let body = document.encode(Serializer::Json).unwrap();
        Message::new(Headers::empty(), properties, body)
    }

    fn state(inbox: &Inbox, id: &str) -> Option<State> {
        inbox.document(id).map(|document| document.status)
    }

    #[test]
    fn replies_come_before_and_after_the_question() {
        let inbox = Inbox::new(10);
        inbox.handle_message(&reply("early", State::Success));
        assert!(matches!(inbox.wait_for("early"), ReplySlot::Ready(_)));
        let ReplySlot::Pending(mut late) = inbox.wait_for("late") else {
            panic!("nothing came yet");
        };
        inbox.handle_message(&reply("late", State::Started));
        assert!(late.try_recv().is_err());
        inbox.handle_message(&reply("late", State::Failure));
        let document = late.try_recv().unwrap().unwrap();
        assert_eq!(document.status, State::Failure);
    }

    #[test]
    fn success_stays() {
        let inbox = Inbox::new(10);
        for state in [State::Started, State::Success, State::Failure] {
            inbox.handle_message(&reply("id", state));
        }
        assert_eq!(state(&inbox, "id"), Some(State::Success));
    }

    #[test]
    fn what_nobody_reads_makes_room_and_is_counted() {
        let inbox = Inbox::new(2);
        for id in ["a", "b", "c"] {
            inbox.handle_message(&reply(id, State::Success));
        }
        assert_eq!((state(&inbox, "a"), inbox.dropped()), (None, 1));
        assert!(state(&inbox, "b").is_some() && state(&inbox, "c").is_some());
    }

    #[test]
    fn what_was_read_does_not_pile_up() {
        let inbox = Inbox::new(10);
        for number in 0..5_000 {
            let id = number.to_string();
            let ReplySlot::Pending(_waiter) = inbox.wait_for(&id) else {
                panic!("nothing came yet");
            };
            inbox.handle_message(&reply(&id, State::Success));
        }
        assert_eq!(inbox.dropped(), 0);
        let state = lock(&inbox.state);
        assert!(state.documents.len() <= READ_LIMIT + 10);
        assert!(state.waiters.is_empty() && state.unread.len() <= 10);
    }

    #[test]
    fn those_who_wait_are_told_when_nothing_comes_any_more() {
        let inbox = Inbox::new(10);
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("nothing came yet");
        };
        let mut marker = inbox.expect_marker("marker");
        let error = ServiceError::new(ServiceErrorKind::Disconnected, "read", "q", "gone");
        inbox.fail(&error);
        assert!(waiter.try_recv().unwrap().is_err());
        assert!(marker.try_recv().unwrap().is_err());

        let ReplySlot::Pending(mut too_late) = inbox.wait_for("id") else {
            panic!("nothing came yet");
        };
        assert!(too_late.try_recv().unwrap().is_err());
        inbox.open();
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("nothing came yet");
        };
        assert!(waiter.try_recv().is_err());
    }

    #[test]
    fn an_unreadable_reply_is_an_error_for_its_task() {
        let inbox = Inbox::new(10);
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("nothing came yet");
        };
        let mut broken = reply("id", State::Success);
        broken.body = "{".into();
        inbox.handle_message(&broken);
        let error = waiter.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        assert_eq!(inbox.dropped(), 1);
    }
}
