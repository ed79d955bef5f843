//! One command: [`ControlCall`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{ControlRequest, Map, Value};

use crate::boundary::{Exchange, Queue};
use crate::control::error::ControlError;
use crate::control::mailbox::ControlMailbox;
use crate::control::replies::{Replies, ok};

/// A command to workers, ready to be sent.
///
/// Created by the methods of [`Control`](crate::Control).
#[must_use = "a command does nothing until it is sent"]
#[derive(Clone)]
pub struct ControlCall {
    mailbox: Arc<ControlMailbox>,
    destination: Destination,
    request: ControlRequest,
}

/// The workers that a command is for, and how long to wait for their replies.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// The names of the workers; all if `None`.
    pub(super) destination: Option<Vec<String>>,
    /// A pattern for names, and its kind: `glob` or `pcre`.
    pub(super) pattern: Option<(String, &'static str)>,
    pub(super) timeout: Duration,
    /// Most replies to wait for.
    pub(super) limit: Option<usize>,
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            destination: None,
            pattern: None,
            timeout: Duration::from_secs(1),
            limit: None,
        }
    }
}

impl Destination {
    /// Returns the number of replies after which no more can be expected.
    fn max_replies(&self) -> Option<usize> {
        let destination = self.destination.as_ref().map(Vec::len);
        self.limit.or(destination)
    }
}

impl ControlCall {
    pub(super) fn new(
        mailbox: Arc<ControlMailbox>,
        destination: Destination,
        command: &str,
        arguments: Map,
    ) -> Self {
        let mut request = ControlRequest::new(command);
        request.arguments = arguments;
        if let Some((pattern, matcher)) = &destination.pattern {
            request.pattern = Some(pattern.clone());
            request.matcher = Some((*matcher).to_owned());
        }
        if let Some(nodes) = &destination.destination {
            request.destination.clone_from(nodes);
        }
        Self {
            mailbox,
            destination,
            request,
        }
    }

    /// Sends the command without waiting for replies. Workers that are not connected
    /// do not receive it.
    ///
    /// # Errors
    ///
    /// When an argument cannot be encoded in JSON, the destination is empty, or the
    /// broker does not accept the command within
    /// [`Config::operation_timeout`](crate::Config::operation_timeout).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the command may or may not have
    /// been sent.
    pub async fn send(self) -> Result<(), ControlError> {
        let request = self.addressed()?;
        self.mailbox.send(request, self.destination.timeout).await
    }

    /// Sends the command and collects the replies of the workers.
    ///
    /// Returns when the timeout is over, or as soon as there are as many replies as
    /// [`Control::limit`](crate::Control::limit) or the destination allows. The
    /// result is empty if no worker replies.
    ///
    /// # Errors
    ///
    /// See [`send`](Self::send). Also when the mailbox for replies cannot be
    /// opened within the timeout of one operation, or its connection is lost while
    /// the command waits. Errors of single workers are part of the [`Replies`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the command may or may not have
    /// been sent.
    pub async fn replies(self) -> Result<Replies<Value>, ControlError> {
        self.replies_as(|value| Ok(ok(value).clone())).await
    }

    /// Sends the command and decodes each reply with `read`.
    pub(super) async fn replies_as<T>(
        self,
        read: fn(&Value) -> Result<T, String>,
    ) -> Result<Replies<T>, ControlError> {
        let request = self.addressed()?;
        let command = request.method.clone();
        let Destination { timeout, .. } = self.destination;
        let collected = self
            .mailbox
            .call(request, timeout, self.destination.max_replies())
            .await?;
        Ok(Replies::read(&command, collected, read))
    }

    /// Returns the request, unless its destination is empty. Workers would treat an
    /// empty destination as all workers.
    fn addressed(&self) -> Result<ControlRequest, ControlError> {
        match &self.destination.destination {
            Some(nodes) if nodes.is_empty() => Err(ControlError::EmptyDestination {
                command: self.request.method.clone(),
            }),
            _ => Ok(self.request.clone()),
        }
    }
}

impl fmt::Debug for ControlCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlCall")
            .field("request", &self.request)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

/// Returns the arguments of `add_consumer`. If the queue has only a name, the
/// worker takes the rest from its settings.
pub(super) fn consumer(queue: &Queue) -> Map {
    let plain = Queue::new(queue.name.as_str());
    let mut arguments = Map::new();
    arguments.insert("queue", queue.name.as_str());
    let Exchange { name, kind, .. } = &queue.exchange;
    let is_plain = queue.exchange == plain.exchange && queue.routing_key == plain.routing_key;
    let bound = |text: &str| {
        if is_plain {
            Value::Null
        } else {
            Value::from(text)
        }
    };
    arguments.insert("exchange", bound(name));
    arguments.insert("exchange_type", kind.name());
    arguments.insert("routing_key", bound(&queue.routing_key));
    if !queue.durable {
        arguments.insert("durable", false);
    }
    if queue.auto_delete {
        arguments.insert("auto_delete", true);
    }
    if !queue.arguments.is_empty() {
        arguments.insert("queue_arguments", Value::Map(queue.arguments.clone()));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_consumer_arguments_match_celery() {
        let expected = Map::from([
            ("queue", Value::from("extra")),
            ("exchange", Value::Null),
            ("exchange_type", "direct".into()),
            ("routing_key", Value::Null),
        ]);
        assert_eq!(consumer(&"extra".into()), expected);
        let bound = Queue::new("extra").bound_to(Exchange::topic("ex"), "a.#");
        let arguments = consumer(&bound.max_priority(5));
        assert_eq!(arguments.get("exchange"), Some(&"ex".into()));
        assert_eq!(arguments.get("exchange_type"), Some(&"topic".into()));
        assert_eq!(arguments.get("routing_key"), Some(&"a.#".into()));
        assert!(arguments.contains_key("queue_arguments"));
    }
}
