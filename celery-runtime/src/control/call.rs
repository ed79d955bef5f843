//! One command: [`ControlCall`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{ControlRequest, Map, Value};

use crate::boundary::{Exchange, Queue};
use crate::control::error::ControlError;
use crate::control::mailbox::ControlMailbox;
use crate::control::replies::{Replies, ok};

/// A command to workers that is not sent yet.
#[must_use = "a command does nothing until it is sent"]
#[derive(Clone)]
pub struct ControlCall {
    mailbox: Arc<ControlMailbox>,
    destination: Destination,
    request: ControlRequest,
}

/// Who is meant, and how long to wait for them.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) destination: Option<Vec<String>>,
    /// The pattern, and what kind of pattern it is.
    pub(super) pattern: Option<(String, &'static str)>,
    pub(super) timeout: Duration,
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
    /// After how many replies there is nothing more to wait for.
    fn most(&self) -> Option<usize> {
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

    /// Sends the command. Workers that are away do not get it.
    ///
    /// # Errors
    ///
    /// When an argument has no form in JSON, the destination is empty, or the
    /// broker does not take the command within the configured deadline.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the command.
    pub async fn send(self) -> Result<(), ControlError> {
        let request = self.addressed()?;
        self.mailbox.send(request, self.destination.timeout).await
    }

    /// Sends the command and collects what workers answer until the timeout is
    /// over, or as many answers are there as the limit or the destination says.
    /// Nobody there is an empty answer.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and when the mailbox for replies cannot be
    /// opened within the deadline or its connection is lost meanwhile. A
    /// worker's error is among the [`Replies`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the command.
    pub async fn replies(self) -> Result<Replies<Value>, ControlError> {
        self.replies_as(|value| Ok(ok(value).clone())).await
    }

    /// The same with answers of one type.
    pub(super) async fn replies_as<T>(
        self,
        read: fn(&Value) -> Result<T, String>,
    ) -> Result<Replies<T>, ControlError> {
        let request = self.addressed()?;
        let command = request.method.clone();
        let Destination { timeout, .. } = self.destination;
        let gathered = self
            .mailbox
            .ask(request, timeout, self.destination.most())
            .await?;
        Ok(Replies::read(&command, gathered, read))
    }

    /// To a worker, no destination means that everybody is meant.
    fn addressed(&self) -> Result<ControlRequest, ControlError> {
        match &self.destination.destination {
            Some(nodes) if nodes.is_empty() => Err(ControlError::Nobody {
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

/// The arguments of `add_consumer`. A queue that only has a name leaves the
/// rest to the worker.
pub(super) fn consumer(queue: &Queue) -> Map {
    let plain = Queue::new(queue.name.as_str());
    let mut arguments = Map::new();
    arguments.insert("queue", queue.name.as_str());
    let Exchange { name, kind, .. } = &queue.exchange;
    let is_plain = queue.exchange == plain.exchange && queue.routing_key == plain.routing_key;
    let bound = |text: &str| match is_plain {
        true => Value::Null,
        false => Value::from(text),
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
    fn a_consumer_of_a_name_alone_is_celerys() {
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
