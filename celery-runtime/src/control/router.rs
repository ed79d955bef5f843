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
pub(crate) struct ReplyRouter {
    calls: Mutex<RoutedCalls>,
    logical_clock: LogicalClock,
}

#[derive(Debug, Default)]
struct RoutedCalls {
    waiting: HashMap<String, RoutedCall>,
    /// Why nothing comes any more.
    broken: Option<ServiceError>,
}

#[derive(Debug)]
struct RoutedCall {
    gathered: CollectedReplies,
    most: usize,
    bytes: usize,
    done: Option<Done>,
}

type Done = oneshot::Sender<Result<(), ServiceError>>;

/// What came until a call ended.
#[derive(Debug, Default)]
pub(crate) struct CollectedReplies {
    /// Workers and their answers.
    pub(crate) replies: Vec<(String, Value)>,
    /// Whether something was left out.
    pub(crate) truncated: bool,
}

/// A call that waits; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PendingCall {
    router: Arc<ReplyRouter>,
    ticket: String,
    done: oneshot::Receiver<Result<(), ServiceError>>,
}

impl ReplyRouter {
    pub(crate) fn new(logical_clock: LogicalClock) -> Self {
        Self {
            calls: Mutex::default(),
            logical_clock,
        }
    }

    /// Replies with this ticket are for somebody from now on, who wants `most`.
    pub(crate) fn expect(self: &Arc<Self>, ticket: &str, most: Option<usize>) -> PendingCall {
        let (sender, done) = oneshot::channel();
        let mut call = RoutedCall {
            gathered: CollectedReplies::default(),
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
        PendingCall {
            router: Arc::clone(self),
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
    fn lock(&self) -> MutexGuard<'_, RoutedCalls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoutedCall {
    fn take(&mut self, reply: ControlReply, size: usize) {
        let CollectedReplies { replies, truncated } = &mut self.gathered;
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

impl PendingCall {
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
    pub(crate) fn gathered(self) -> CollectedReplies {
        let call = self.router.lock().waiting.remove(&self.ticket);
        call.map(|call| call.gathered).unwrap_or_default()
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.router.lock().waiting.remove(&self.ticket);
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

    fn router() -> Arc<ReplyRouter> {
        Arc::new(ReplyRouter::new(LogicalClock::default()))
    }

    fn nodes(gathered: &CollectedReplies) -> Vec<&str> {
        gathered.replies.iter().map(|(node, _)| &**node).collect()
    }

    #[tokio::test]
    async fn replies_go_to_the_call_with_their_ticket() {
        let router = router();
        let (one, two) = (router.expect("1", None), router.expect("2", None));
        for (ticket, node) in [("1", "a"), ("2", "b"), ("3", "c"), ("1", "d")] {
            router.deliver(&reply(ticket, node, "pong"));
        }
        assert_eq!(nodes(&one.gathered()), ["a", "d"]);
        assert_eq!(nodes(&two.gathered()), ["b"]);
        assert!(router.lock().waiting.is_empty());
        assert!(router.logical_clock.value() > 40, "clocks are adjusted");
    }

    #[tokio::test]
    async fn enough_replies_end_the_call() {
        let router = router();
        let mut call = router.expect("1", Some(2));
        for node in ["a", "b", "c"] {
            router.deliver(&reply("1", node, 1));
        }
        call.done().await.unwrap();
        assert_eq!(nodes(&call.gathered()), ["a", "b"]);
        router.expect("2", Some(0)).done().await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_is_cut_off_and_says_so() {
        let router = router();
        let mut many = router.expect("many", None);
        for _ in 0..=MOST_REPLIES {
            router.deliver(&reply("many", "a", 1));
        }
        many.done().await.unwrap();
        let many = many.gathered();
        assert!(many.truncated && many.replies.len() == MOST_REPLIES);

        let mut large = router.expect("large", None);
        let text = "x".repeat(MOST_BYTES / 8);
        for _ in 0..9 {
            router.deliver(&reply("large", "a", text.as_str()));
        }
        large.done().await.unwrap();
        let large = large.gathered();
        assert!(large.truncated && large.replies.len() == 7);
    }

    #[tokio::test]
    async fn an_unreadable_reply_leaves_the_others() {
        let router = router();
        let call = router.expect("1", None);
        let mut broken = reply("1", "a", 1);
        broken.body = "{".into();
        router.deliver(&broken);
        router.deliver(&reply("1", "b", 1));
        let gathered = call.gathered();
        assert!(gathered.truncated);
        assert_eq!(nodes(&gathered), ["b"]);
    }

    #[tokio::test]
    async fn a_lost_mailbox_is_told_to_all() {
        let router = router();
        let mut call = router.expect("1", None);
        router.fail(&ServiceError::new(
            ServiceErrorKind::Disconnected,
            "read",
            "q",
            "gone",
        ));
        call.done().await.unwrap_err();
        assert!(!router.is_open());
        router.expect("2", None).done().await.unwrap_err();
        drop(call);
        assert!(router.lock().waiting.is_empty());
    }
}
