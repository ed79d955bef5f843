//! Replies that have come, and those who wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use celery_protocol::{DecodeError, Message, ResultDocument, Serializer, State};
use celery_runtime::{ServiceError, ServiceErrorKind};
use tokio::sync::oneshot;

use crate::link::lock;

/// So many results stay after they were read, to be read again.
const READ_LIMIT: usize = 1_000;

/// Larger bodies are no results.
const LARGEST: usize = 512 << 20;

/// The replies of one client.
#[derive(Debug)]
pub(super) struct Inbox {
    letters: Mutex<Letters>,
    unread_limit: usize,
}

#[derive(Debug, Default)]
struct Letters {
    documents: HashMap<String, ResultDocument<'static>>,
    /// Tasks whose documents were not read yet, in the order in which they
    /// came. An entry counts as long as its task has a document.
    unread: VecDeque<String>,
    read: VecDeque<String>,
    waiting: HashMap<String, Vec<Sender<ResultDocument<'static>>>>,
    markers: HashMap<String, Sender<()>>,
    /// Why nothing comes at the moment.
    broken: Option<ServiceError>,
    dropped: u64,
}

type Sender<T> = oneshot::Sender<Result<T, ServiceError>>;
type Receiver<T> = oneshot::Receiver<Result<T, ServiceError>>;

/// The result of a task, or the place where it will arrive.
pub(super) enum Mail {
    Here(Box<ResultDocument<'static>>),
    Awaited(Receiver<ResultDocument<'static>>),
}

impl Inbox {
    pub(super) fn new(unread_limit: usize) -> Self {
        Self {
            letters: Mutex::default(),
            unread_limit,
        }
    }

    /// A reply came.
    pub(super) fn deliver(&self, message: &Message) {
        let mut letters = lock(&self.letters);
        let id = message.properties.correlation_id.as_deref();
        if let Some(marker) = id.and_then(|id| letters.markers.remove(id)) {
            // Whoever sent it may have left.
            let _ = marker.send(Ok(()));
            return;
        }
        match read(message) {
            Ok(document) => letters.take_in(document, self.unread_limit),
            Err(error) => {
                tracing::warn!(
                    "a reply for task {} is unreadable: {error}",
                    id.unwrap_or("?")
                );
                letters.refuse(id.unwrap_or_default(), &error);
            }
        }
    }

    /// Whether replies come.
    pub(super) fn is_open(&self) -> bool {
        lock(&self.letters).broken.is_none()
    }

    /// Replies come from now on.
    pub(super) fn open(&self) {
        lock(&self.letters).broken = None;
    }

    /// Nothing comes any more: those who wait have to ask again, and so has
    /// everybody until it is opened.
    pub(super) fn fail(&self, error: &ServiceError) {
        let mut letters = lock(&self.letters);
        letters.broken = Some(error.clone());
        for (_, waiters) in letters.waiting.drain() {
            tell(waiters, || Err(error.clone()));
        }
        tell(letters.markers.drain().map(|(_, marker)| marker), || {
            Err(error.clone())
        });
    }

    /// The last that is known of a task.
    pub(super) fn find(&self, id: &str) -> Option<ResultDocument<'static>> {
        lock(&self.letters).documents.get(id).cloned()
    }

    /// The final document of a task.
    pub(super) fn wait(&self, id: &str) -> Mail {
        let mut letters = lock(&self.letters);
        if let Some(document) = letters
            .documents
            .get(id)
            .filter(|one| one.status.is_ready())
        {
            let document = Box::new(document.clone());
            letters.note_read(id);
            return Mail::Here(document);
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(error) = &letters.broken {
            tell([sender], || Err(error.clone()));
            return Mail::Awaited(receiver);
        }
        let waiters = letters.waiting.entry(id.to_owned()).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        Mail::Awaited(receiver)
    }

    pub(super) fn expect_marker(&self, id: &str) -> Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut letters = lock(&self.letters);
        if let Some(error) = &letters.broken {
            tell([sender], || Err(error.clone()));
        } else {
            letters.markers.insert(id.to_owned(), sender);
        }
        receiver
    }

    pub(super) fn forget(&self, ids: &[String]) {
        let mut letters = lock(&self.letters);
        for id in ids {
            letters.documents.remove(id);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        lock(&self.letters).dropped
    }
}

impl Letters {
    fn take_in(&mut self, document: ResultDocument<'static>, unread_limit: usize) {
        let id = document.task_id.clone().into_owned();
        let known = self.documents.get(&id);
        if known.is_some_and(|known| known.status == State::Success) {
            return;
        }
        let is_new = known.is_none();
        let waiters = match document.status.is_ready() {
            true => self.waiting.remove(&id).unwrap_or_default(),
            false => Vec::new(),
        };
        let was_read = tell(waiters, || Ok(document.clone()));
        self.documents.insert(id.clone(), document);
        if is_new {
            self.unread.push_back(id.clone());
            self.drop_oldest(unread_limit);
        }
        if was_read {
            self.note_read(&id);
        }
    }

    /// Results that were read make room before any that was not.
    fn note_read(&mut self, id: &str) {
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

    fn refuse(&mut self, id: &str, error: &DecodeError) {
        self.dropped += 1;
        let waiters = self.waiting.remove(id).unwrap_or_default();
        tell(waiters, || {
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
fn tell<T>(
    waiters: impl IntoIterator<Item = Sender<T>>,
    what: impl Fn() -> Result<T, ServiceError>,
) -> bool {
    let mut heard = false;
    for waiter in waiters {
        heard |= waiter.send(what()).is_ok();
    }
    heard
}

fn read(message: &Message) -> Result<ResultDocument<'static>, DecodeError> {
    let serializer = Serializer::from_content_type(&message.properties.content_type);
    let serializer = serializer.unwrap_or(Serializer::Json);
    Ok(ResultDocument::decode(serializer, &message.body, LARGEST)?.into_owned())
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
        inbox.find(id).map(|document| document.status)
    }

    #[test]
    fn replies_come_before_and_after_the_question() {
        let inbox = Inbox::new(10);
        inbox.deliver(&reply("early", State::Success));
        assert!(matches!(inbox.wait("early"), Mail::Here(_)));
        let Mail::Awaited(mut late) = inbox.wait("late") else {
            panic!("nothing came yet");
        };
        inbox.deliver(&reply("late", State::Started));
        assert!(late.try_recv().is_err());
        inbox.deliver(&reply("late", State::Failure));
        let document = late.try_recv().unwrap().unwrap();
        assert_eq!(document.status, State::Failure);
    }

    #[test]
    fn success_stays() {
        let inbox = Inbox::new(10);
        for state in [State::Started, State::Success, State::Failure] {
            inbox.deliver(&reply("id", state));
        }
        assert_eq!(state(&inbox, "id"), Some(State::Success));
    }

    #[test]
    fn what_nobody_reads_makes_room_and_is_counted() {
        let inbox = Inbox::new(2);
        for id in ["a", "b", "c"] {
            inbox.deliver(&reply(id, State::Success));
        }
        assert_eq!((state(&inbox, "a"), inbox.dropped()), (None, 1));
        assert!(state(&inbox, "b").is_some() && state(&inbox, "c").is_some());
    }

    #[test]
    fn what_was_read_does_not_pile_up() {
        let inbox = Inbox::new(10);
        for number in 0..5_000 {
            let id = number.to_string();
            let Mail::Awaited(_waiter) = inbox.wait(&id) else {
                panic!("nothing came yet");
            };
            inbox.deliver(&reply(&id, State::Success));
        }
        assert_eq!(inbox.dropped(), 0);
        let letters = lock(&inbox.letters);
        assert!(letters.documents.len() <= READ_LIMIT + 10);
        assert!(letters.waiting.is_empty() && letters.unread.len() <= 10);
    }

    #[test]
    fn those_who_wait_are_told_when_nothing_comes_any_more() {
        let inbox = Inbox::new(10);
        let Mail::Awaited(mut waiter) = inbox.wait("id") else {
            panic!("nothing came yet");
        };
        let mut marker = inbox.expect_marker("marker");
        let error = ServiceError::new(ServiceErrorKind::Disconnected, "read", "q", "gone");
        inbox.fail(&error);
        assert!(waiter.try_recv().unwrap().is_err());
        assert!(marker.try_recv().unwrap().is_err());

        let Mail::Awaited(mut too_late) = inbox.wait("id") else {
            panic!("nothing came yet");
        };
        assert!(too_late.try_recv().unwrap().is_err());
        inbox.open();
        let Mail::Awaited(mut waiter) = inbox.wait("id") else {
            panic!("nothing came yet");
        };
        assert!(waiter.try_recv().is_err());
    }

    #[test]
    fn an_unreadable_reply_is_an_error_for_its_task() {
        let inbox = Inbox::new(10);
        let Mail::Awaited(mut waiter) = inbox.wait("id") else {
            panic!("nothing came yet");
        };
        let mut broken = reply("id", State::Success);
        broken.body = "{".into();
        inbox.deliver(&broken);
        let error = waiter.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        assert_eq!(inbox.dropped(), 1);
    }
}
