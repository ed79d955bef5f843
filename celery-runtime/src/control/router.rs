//! Replies that have come, and the calls that wait for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_protocol::{ControlReply, Message, Value};
use tokio::sync::oneshot;

use crate::boundary::ServiceError;
use crate::logical_clock::LogicalClock;

/// A call takes no more replies than this, nor more bytes in them. What comes
/// then is left out, which the caller is told.
const MOST_REPLIES: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;

/// The replies of one mailbox, sorted by ticket.
#[derive(Debug)]
pub(crate) struct Inbox {
    calls: Mutex<Calls>,
    logical_clock: LogicalClock,
}

#[derive(Debug, Default)]
struct Calls {
    waiting: HashMap<String, Call>,
    /// Why nothing comes any more.
    broken: Option<ServiceError>,
}

#[derive(Debug)]
struct Call {
    gathered: Gathered,
    most: usize,
    bytes: usize,
    done: Option<Done>,
}

type Done = oneshot::Sender<Result<(), ServiceError>>;

/// What came until a call ended.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Workers and their answers.
    pub(crate) replies: Vec<(String, Value)>,
    /// Whether something was left out.
    pub(crate) truncated: bool,
}

/// A call that waits; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Expected {
    inbox: Arc<Inbox>,
    ticket: String,
    done: oneshot::Receiver<Result<(), ServiceError>>,
}

impl Inbox {
    pub(crate) fn new(logical_clock: LogicalClock) -> Self {
        Self {
            calls: Mutex::default(),
            logical_clock,
        }
    }

    /// Replies with this ticket are for somebody from now on, who wants `most`.
    pub(crate) fn expect(self: &Arc<Self>, ticket: &str, most: Option<usize>) -> Expected {
        let (sender, done) = oneshot::channel();
        let mut call = Call {
            gathered: Gathered::default(),
            most: most.unwrap_or(usize::MAX),
            bytes: 0,
            done: Some(sender),
        };
        let mut calls = self.lock();
        if let Some(error) = &calls.broken {
            call.end(Err(error.clone()));
        } else if call.most == 0 {
            call.end(Ok(()));
        }
        calls.waiting.insert(ticket.to_owned(), call);
        Expected {
            inbox: Arc::clone(self),
            ticket: ticket.to_owned(),
            done,
        }
    }

    /// A reply came. Those with a ticket that nobody has are not even decoded.
    pub(crate) fn deliver(&self, message: &Message) {
        let Some(ticket) = ticket(message) else {
            return;
        };
        if !self.lock().waiting.contains_key(&ticket) {
            return;
        }
        let reply = ControlReply::read(message);
        if let Ok(reply) = &reply {
            self.logical_clock.adjust(reply.clock);
        }
        let mut calls = self.lock();
        let Some(call) = calls.waiting.get_mut(&ticket) else {
            return;
        };
        match reply {
            Ok(reply) => call.take(reply, message.body.len()),
            Err(error) => {
                tracing::warn!("a reply to a command cannot be read: {error}");
                call.gathered.truncated = true;
            }
        }
    }

    /// Nothing comes any more; everybody who waits is told.
    pub(crate) fn fail(&self, error: &ServiceError) {
        let mut calls = self.lock();
        calls.broken = Some(error.clone());
        for call in calls.waiting.values_mut() {
            call.end(Err(error.clone()));
        }
    }

    /// Whether replies come.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().broken.is_none()
    }

    /// No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    fn take(&mut self, reply: ControlReply, size: usize) {
        let Gathered { replies, truncated } = &mut self.gathered;
        if replies.len() >= self.most {
            return;
        }
        self.bytes = self.bytes.saturating_add(size);
        if replies.len() >= MOST_REPLIES || self.bytes > MOST_BYTES {
            *truncated = true;
            tracing::warn!("more replies came to a command than are read");
            return self.end(Ok(()));
        }
        replies.push((reply.node, reply.value));
        if replies.len() >= self.most {
            self.end(Ok(()));
        }
    }

    fn end(&mut self, how: Result<(), ServiceError>) {
        if let Some(done) = self.done.take() {
            // Whoever waited may have left.
            let _ = done.send(how);
        }
    }
}

impl Expected {
    /// Waits until enough replies are there, or none will come any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn done(&mut self) -> Result<(), ServiceError> {
        // The sender goes only after it has sent.
        (&mut self.done).await.unwrap_or(Ok(()))
    }

    /// What came so far.
    pub(crate) fn gathered(self) -> Gathered {
        let call = self.inbox.lock().waiting.remove(&self.ticket);
        call.map(|call| call.gathered).unwrap_or_default()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.inbox.lock().waiting.remove(&self.ticket);
    }
}

fn ticket(message: &Message) -> Option<String> {
    message.headers.find("ticket").ok()??.decode().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::ServiceErrorKind;

    fn reply(ticket: &str, node: &str, value: impl Into<Value>) -> Message {
        let mut reply = ControlReply::new(node, value);
        reply.ticket = Some(ticket.to_owned());
        reply.clock = 40;
        reply.write().unwrap()
    }

    fn inbox() -> Arc<Inbox> {
        Arc::new(Inbox::new(LogicalClock::default()))
    }

    fn nodes(gathered: &Gathered) -> Vec<&str> {
        gathered.replies.iter().map(|(node, _)| &**node).collect()
    }

    #[tokio::test]
    async fn replies_go_to_the_call_with_their_ticket() {
        let inbox = inbox();
        let (one, two) = (inbox.expect("1", None), inbox.expect("2", None));
        for (ticket, node) in [("1", "a"), ("2", "b"), ("3", "c"), ("1", "d")] {
            inbox.deliver(&reply(ticket, node, "pong"));
        }
        assert_eq!(nodes(&one.gathered()), ["a", "d"]);
        assert_eq!(nodes(&two.gathered()), ["b"]);
        assert!(inbox.lock().waiting.is_empty());
        assert!(inbox.logical_clock.value() > 40, "clocks are adjusted");
    }

    #[tokio::test]
    async fn enough_replies_end_the_call() {
        let inbox = inbox();
        let mut call = inbox.expect("1", Some(2));
        for node in ["a", "b", "c"] {
            inbox.deliver(&reply("1", node, 1));
        }
        call.done().await.unwrap();
        assert_eq!(nodes(&call.gathered()), ["a", "b"]);
        inbox.expect("2", Some(0)).done().await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_is_cut_off_and_says_so() {
        let inbox = inbox();
        let mut many = inbox.expect("many", None);
        for _ in 0..=MOST_REPLIES {
            inbox.deliver(&reply("many", "a", 1));
        }
        many.done().await.unwrap();
        let many = many.gathered();
        assert!(many.truncated && many.replies.len() == MOST_REPLIES);

        let mut large = inbox.expect("large", None);
        let text = "x".repeat(MOST_BYTES / 8);
        for _ in 0..9 {
            inbox.deliver(&reply("large", "a", text.as_str()));
        }
        large.done().await.unwrap();
        let large = large.gathered();
        assert!(large.truncated && large.replies.len() == 7);
    }

    #[tokio::test]
    async fn an_unreadable_reply_leaves_the_others() {
        let inbox = inbox();
        let call = inbox.expect("1", None);
        let mut broken = reply("1", "a", 1);
        broken.body = "{".into();
        inbox.deliver(&broken);
        inbox.deliver(&reply("1", "b", 1));
        let gathered = call.gathered();
        assert!(gathered.truncated);
        assert_eq!(nodes(&gathered), ["b"]);
    }

    #[tokio::test]
    async fn a_lost_mailbox_is_told_to_all() {
        let inbox = inbox();
        let mut call = inbox.expect("1", None);
        inbox.fail(&ServiceError::new(
            ServiceErrorKind::Disconnected,
            "read",
            "q",
            "gone",
        ));
        call.done().await.unwrap_err();
        assert!(!inbox.is_open());
        inbox.expect("2", None).done().await.unwrap_err();
        drop(call);
        assert!(inbox.lock().waiting.is_empty());
    }
}
