//! The replies received by one client and the callers that wait for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;

use celery_protocol::{DecodeError, Message, ResultDocument, Serializer, State};
use celery_runtime::{ServiceError, ServiceErrorKind};
use tokio::sync::oneshot;

use crate::sync::lock;

/// The number of results that are kept after they were read, so that they can
/// be read again.
const MAX_READ_RESULTS: usize = 1_000;

/// The largest result body that is decoded, in bytes.
const MAX_BODY_LEN: usize = 512 << 20;

/// The replies of one client, by task id.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    unread_limit: usize,
}

#[derive(Debug, Default)]
struct InboxState {
    documents: HashMap<String, ResultDocument<'static>>,
    /// Tasks whose documents were not read yet, in order of arrival. An entry is
    /// stale once its task has no document any more.
    unread: VecDeque<String>,
    /// Tasks whose documents were read, in order of reading.
    read: VecDeque<String>,
    waiters: BTreeMap<String, Vec<ReplySender<ResultDocument<'static>>>>,
    /// The markers that a client has sent to its own reply queue, by correlation
    /// id.
    markers: BTreeMap<String, ReplySender<()>>,
    /// The error that stopped the reading of the reply queue.
    error: Option<ServiceError>,
    /// Results that were evicted unread or could not be decoded.
    dropped: u64,
}

type ReplySender<T> = oneshot::Sender<Result<T, ServiceError>>;
type ReplyReceiver<T> = oneshot::Receiver<Result<T, ServiceError>>;

/// The place where the result of a task is, or will be.
pub(super) enum ReplySlot {
    /// The result has arrived.
    Ready(Box<ResultDocument<'static>>),
    /// The channel that will receive the result.
    Pending(ReplyReceiver<ResultDocument<'static>>),
}

impl Inbox {
    pub(super) fn new(unread_limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            unread_limit,
        }
    }

    /// Stores a reply and completes the calls that wait for it.
    pub(super) fn handle_message(&self, message: &Message) {
        let mut state = lock(&self.state);
        let id = message.properties.correlation_id.as_deref();
        if let Some(marker) = id.and_then(|id| state.markers.remove(id)) {
            // A cancelled caller has dropped the receiver.
            let _ = marker.send(Ok(()));
            return;
        }
        match decode_reply(message) {
            Ok(document) => state.store(document, self.unread_limit),
            Err(error) => {
                tracing::warn!(
                    "rpc/read: cannot decode the reply for task {}: {error}",
                    id.unwrap_or("?")
                );
                state.reject(id.unwrap_or_default(), &error);
            }
        }
    }

    /// Reports whether the reply queue is being read.
    pub(super) fn is_open(&self) -> bool {
        lock(&self.state).error.is_none()
    }

    /// Records that the reply queue is being read.
    pub(super) fn open(&self) {
        lock(&self.state).error = None;
    }

    /// Fails the pending calls, and every call until [`open`](Self::open).
    pub(super) fn fail(&self, error: &ServiceError) {
        let mut state = lock(&self.state);
        state.error = Some(error.clone());
        for waiters in std::mem::take(&mut state.waiters).into_values() {
            complete(waiters, || Err(error.clone()));
        }
        let markers = std::mem::take(&mut state.markers);
        complete(markers.into_values(), || Err(error.clone()));
    }

    /// Returns the newest document of a task.
    pub(super) fn document(&self, id: &str) -> Option<ResultDocument<'static>> {
        lock(&self.state).documents.get(id).cloned()
    }

    /// Returns the final document of a task, or the channel that receives it.
    pub(super) fn wait_for(&self, id: &str) -> ReplySlot {
        let mut state = lock(&self.state);
        if let Some(document) = state
            .documents
            .get(id)
            .filter(|document| document.status.is_ready())
        {
            let document = Box::new(document.clone());
            state.mark_read(id);
            return ReplySlot::Ready(document);
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(error) = &state.error {
            complete([sender], || Err(error.clone()));
            return ReplySlot::Pending(receiver);
        }
        let waiters = state.waiters.entry(id.to_owned()).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        ReplySlot::Pending(receiver)
    }

    /// Registers a marker and returns the channel that is completed when the
    /// marker arrives.
    pub(super) fn expect_marker(&self, id: &str) -> ReplyReceiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        if let Some(error) = &state.error {
            complete([sender], || Err(error.clone()));
        } else {
            state.markers.insert(id.to_owned(), sender);
        }
        receiver
    }

    /// Removes the documents of these tasks.
    pub(super) fn forget(&self, ids: &[String]) {
        let mut state = lock(&self.state);
        for id in ids {
            state.documents.remove(id);
        }
    }

    /// Returns the number of results that were evicted unread or could not be
    /// decoded.
    pub(super) fn dropped(&self) -> u64 {
        lock(&self.state).dropped
    }
}

impl InboxState {
    /// Keeps the newest document of a task and completes its waiters when the
    /// document is final.
    fn store(&mut self, document: ResultDocument<'static>, unread_limit: usize) {
        let id = document.task_id.clone().into_owned();
        let previous = self.documents.get(&id);
        // No later state replaces a success.
        if previous.is_some_and(|previous| previous.status == State::Success) {
            return;
        }
        let is_new = previous.is_none();
        let waiters = if document.status.is_ready() {
            self.waiters.remove(&id).unwrap_or_default()
        } else {
            Vec::new()
        };
        let was_read = complete(waiters, || Ok(document.clone()));
        self.documents.insert(id.clone(), document);
        if is_new {
            self.unread.push_back(id.clone());
            self.evict_unread(unread_limit);
        }
        if was_read {
            self.mark_read(&id);
        }
    }

    /// Marks a document as read and evicts the document that was read first once
    /// too many read ones are kept.
    fn mark_read(&mut self, id: &str) {
        self.read.push_back(id.to_owned());
        if self.read.len() > MAX_READ_RESULTS
            && let Some(oldest) = self.read.pop_front()
            && !self.read.contains(&oldest)
        {
            self.documents.remove(&oldest);
        }
    }

    /// Evicts the oldest unread documents.
    fn evict_unread(&mut self, unread_limit: usize) {
        while self.unread.len() > unread_limit {
            let oldest = self.unread.pop_front().unwrap_or_default();
            let was_read = self.read.contains(&oldest);
            if !was_read && self.documents.remove(&oldest).is_some() {
                self.dropped += 1;
            }
        }
    }

    /// Fails the waiters of a task whose reply cannot be decoded.
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

/// Completes the waiters, and reports whether any of them was still waiting.
fn complete<T>(
    waiters: impl IntoIterator<Item = ReplySender<T>>,
    result: impl Fn() -> Result<T, ServiceError>,
) -> bool {
    let mut received = false;
    for waiter in waiters {
        received |= waiter.send(result()).is_ok();
    }
    received
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
    fn wait_returns_replies_received_before_and_after_the_call() {
        let inbox = Inbox::new(10);
        inbox.handle_message(&reply("early", State::Success));
        assert!(matches!(inbox.wait_for("early"), ReplySlot::Ready(_)));
        let ReplySlot::Pending(mut late) = inbox.wait_for("late") else {
            panic!("no reply has been received");
        };
        inbox.handle_message(&reply("late", State::Started));
        assert!(late.try_recv().is_err());
        inbox.handle_message(&reply("late", State::Failure));
        let document = late.try_recv().unwrap().unwrap();
        assert_eq!(document.status, State::Failure);
    }

    #[test]
    fn success_is_not_overwritten() {
        let inbox = Inbox::new(10);
        for state in [State::Started, State::Success, State::Failure] {
            inbox.handle_message(&reply("id", state));
        }
        assert_eq!(state(&inbox, "id"), Some(State::Success));
    }

    #[test]
    fn oldest_unread_result_is_evicted_and_counted() {
        let inbox = Inbox::new(2);
        for id in ["a", "b", "c"] {
            inbox.handle_message(&reply(id, State::Success));
        }
        assert_eq!((state(&inbox, "a"), inbox.dropped()), (None, 1));
        assert!(state(&inbox, "b").is_some() && state(&inbox, "c").is_some());
    }

    #[test]
    fn read_results_are_bounded() {
        let inbox = Inbox::new(10);
        for number in 0..5_000 {
            let id = number.to_string();
            let ReplySlot::Pending(_waiter) = inbox.wait_for(&id) else {
                panic!("no reply has been received");
            };
            inbox.handle_message(&reply(&id, State::Success));
        }
        assert_eq!(inbox.dropped(), 0);
        let state = lock(&inbox.state);
        assert!(state.documents.len() <= MAX_READ_RESULTS + 10);
        assert!(state.waiters.is_empty() && state.unread.len() <= 10);
    }

    #[test]
    fn broken_reply_queue_fails_waiters_until_reopened() {
        let inbox = Inbox::new(10);
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("no reply has been received");
        };
        let mut marker = inbox.expect_marker("marker");
        let error = ServiceError::new(ServiceErrorKind::Disconnected, "read", "q", "gone");
        inbox.fail(&error);
        assert!(waiter.try_recv().unwrap().is_err());
        assert!(marker.try_recv().unwrap().is_err());

        let ReplySlot::Pending(mut late) = inbox.wait_for("id") else {
            panic!("no reply has been received");
        };
        assert!(late.try_recv().unwrap().is_err());
        inbox.open();
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("no reply has been received");
        };
        assert!(waiter.try_recv().is_err());
    }

    #[test]
    fn undecodable_reply_fails_its_task() {
        let inbox = Inbox::new(10);
        let ReplySlot::Pending(mut waiter) = inbox.wait_for("id") else {
            panic!("no reply has been received");
        };
        let mut broken = reply("id", State::Success);
        broken.body = "{".into();
        inbox.handle_message(&broken);
        let error = waiter.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        assert_eq!(inbox.dropped(), 1);
    }
}
