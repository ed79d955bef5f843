//! Assigns replies to the calls that wait for them: [`ReplyRouter`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_protocol::{ControlReply, Message, Value};
use tokio::sync::oneshot;

use crate::boundary::ServiceError;
use crate::logical_clock::LogicalClock;

/// Most replies to one call, and most bytes in them. Further replies are dropped,
/// and the call is marked as truncated.
const MAX_REPLIES: usize = 10_000;
const MAX_BYTES: usize = 64 << 20;

/// Routes the replies of one mailbox to calls by their tickets.
#[derive(Debug)]
pub(crate) struct ReplyRouter {
    calls: Mutex<RoutedCalls>,
    logical_clock: LogicalClock,
}

#[derive(Debug, Default)]
struct RoutedCalls {
    /// Open calls by ticket.
    waiting: HashMap<String, RoutedCall>,
    /// The error that ended the mailbox.
    broken: Option<ServiceError>,
}

/// The replies to one open call.
#[derive(Debug)]
struct RoutedCall {
    collected: CollectedReplies,
    limit: usize,
    /// The size of all replies.
    bytes: usize,
    done: Option<DoneSender>,
}

type DoneSender = oneshot::Sender<Result<(), ServiceError>>;

/// The replies received until the end of a call.
#[derive(Debug, Default)]
pub(crate) struct CollectedReplies {
    /// Names of workers and the values of their replies.
    pub(crate) replies: Vec<(String, Value)>,
    /// Whether replies were dropped.
    pub(crate) truncated: bool,
}

/// A call that waits for replies. Dropping it removes the call.
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

    /// Registers a call with this ticket, which ends after `limit` replies.
    pub(crate) fn register(self: &Arc<Self>, ticket: &str, limit: Option<usize>) -> PendingCall {
        let (sender, done) = oneshot::channel();
        let mut call = RoutedCall {
            collected: CollectedReplies::default(),
            limit: limit.unwrap_or(usize::MAX),
            bytes: 0,
            done: Some(sender),
        };
        let mut calls = self.lock();
        if let Some(error) = &calls.broken {
            call.finish(Err(error.clone()));
        } else if call.limit == 0 {
            call.finish(Ok(()));
        }
        calls.waiting.insert(ticket.to_owned(), call);
        PendingCall {
            router: Arc::clone(self),
            ticket: ticket.to_owned(),
            done,
        }
    }

    /// Adds a reply to its call. Replies with the ticket of no open call are dropped
    /// without being decoded.
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
            Ok(reply) => call.push(reply, message.body.len()),
            Err(error) => {
                tracing::warn!("cannot decode a reply to a control command: {error}");
                call.collected.truncated = true;
            }
        }
    }

    /// Ends all open calls and later ones with this error, after the mailbox is
    /// lost.
    pub(crate) fn fail(&self, error: &ServiceError) {
        let mut calls = self.lock();
        calls.broken = Some(error.clone());
        for call in calls.waiting.values_mut() {
            call.finish(Err(error.clone()));
        }
    }

    /// Returns whether the mailbox still receives replies.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().broken.is_none()
    }

    /// A poisoned lock is ignored: no code panics while it holds it.
    fn lock(&self) -> MutexGuard<'_, RoutedCalls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoutedCall {
    fn push(&mut self, reply: ControlReply, size: usize) {
        let CollectedReplies { replies, truncated } = &mut self.collected;
        if replies.len() >= self.limit {
            return;
        }
        self.bytes = self.bytes.saturating_add(size);
        if replies.len() >= MAX_REPLIES || self.bytes > MAX_BYTES {
            *truncated = true;
            tracing::warn!("dropping replies to a control command: too many or too large");
            return self.finish(Ok(()));
        }
        replies.push((reply.node, reply.value));
        if replies.len() >= self.limit {
            self.finish(Ok(()));
        }
    }

    fn finish(&mut self, result: Result<(), ServiceError>) {
        if let Some(done) = self.done.take() {
            // Fails if the call was dropped.
            let _ = done.send(result);
        }
    }
}

impl PendingCall {
    /// Waits until the limit is reached or the mailbox is lost.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn done(&mut self) -> Result<(), ServiceError> {
        // The sender is dropped only after it was used.
        (&mut self.done).await.unwrap_or(Ok(()))
    }

    /// Returns the replies received so far.
    pub(crate) fn collected(self) -> CollectedReplies {
        let call = self.router.lock().waiting.remove(&self.ticket);
        call.map(|call| call.collected).unwrap_or_default()
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

    fn nodes(collected: &CollectedReplies) -> Vec<&str> {
        collected.replies.iter().map(|(node, _)| &**node).collect()
    }

    #[tokio::test]
    async fn replies_are_routed_by_ticket() {
        let router = router();
        let (one, two) = (router.register("1", None), router.register("2", None));
        for (ticket, node) in [("1", "a"), ("2", "b"), ("3", "c"), ("1", "d")] {
            router.deliver(&reply(ticket, node, "pong"));
        }
        assert_eq!(nodes(&one.collected()), ["a", "d"]);
        assert_eq!(nodes(&two.collected()), ["b"]);
        assert!(router.lock().waiting.is_empty());
        assert!(router.logical_clock.value() > 40, "clocks are adjusted");
    }

    #[tokio::test]
    async fn call_ends_at_its_limit() {
        let router = router();
        let mut call = router.register("1", Some(2));
        for node in ["a", "b", "c"] {
            router.deliver(&reply("1", node, 1));
        }
        call.done().await.unwrap();
        assert_eq!(nodes(&call.collected()), ["a", "b"]);
        router.register("2", Some(0)).done().await.unwrap();
    }

    #[tokio::test]
    async fn excess_replies_are_dropped_and_marked_truncated() {
        let router = router();
        let mut many = router.register("many", None);
        for _ in 0..=MAX_REPLIES {
            router.deliver(&reply("many", "a", 1));
        }
        many.done().await.unwrap();
        let many = many.collected();
        assert!(many.truncated && many.replies.len() == MAX_REPLIES);

        let mut large = router.register("large", None);
        let text = "x".repeat(MAX_BYTES / 8);
        for _ in 0..9 {
            router.deliver(&reply("large", "a", text.as_str()));
        }
        large.done().await.unwrap();
        let large = large.collected();
        assert!(large.truncated && large.replies.len() == 7);
    }

    #[tokio::test]
    async fn undecodable_reply_keeps_the_others() {
        let router = router();
        let call = router.register("1", None);
        let mut broken = reply("1", "a", 1);
        broken.body = "{".into();
        router.deliver(&broken);
        router.deliver(&reply("1", "b", 1));
        let collected = call.collected();
        assert!(collected.truncated);
        assert_eq!(nodes(&collected), ["b"]);
    }

    #[tokio::test]
    async fn lost_mailbox_ends_all_calls() {
        let router = router();
        let mut call = router.register("1", None);
        router.fail(&ServiceError::new(
            ServiceErrorKind::Disconnected,
            "read",
            "q",
            "gone",
        ));
        call.done().await.unwrap_err();
        assert!(!router.is_open());
        router.register("2", None).done().await.unwrap_err();
        drop(call);
        assert!(router.lock().waiting.is_empty());
    }
}
