//! Sending to mailboxes.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use celery_protocol::Message;
use celery_runtime::{Exchange, ExchangeKind, ServiceError, ServiceErrorKind};

use crate::client::{Command, Operation, Script};
use crate::shared::Shared;

static MAILBOX_PUSH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_push.lua")));

/// The minimum time to live of a list with a message whose owner may no longer
/// exist: the time in which Celery keeps unused mailboxes
/// (`control_queue_expires`).
const MIN_MAILBOX_TTL: Duration = Duration::from_secs(10);

impl Shared {
    /// Publishes to a channel, or pushes to the lists that are bound to a
    /// direct exchange. Returns the number of receivers, which may be 0.
    pub(crate) async fn broadcast(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        message: &Message,
    ) -> Result<Option<u64>, ServiceError> {
        let envelope = self.envelope(message, &exchange.name, routing_key)?;
        let object = format!("exchange {}", exchange.name);
        let operation = Operation::new("broadcast to", &object);
        if self.is_channel(exchange, "broadcast to")? {
            let channel = self.channel(&exchange.name, routing_key);
            let command = Command::new("PUBLISH").arg(channel).arg(envelope);
            let receivers = self.client.call(operation, command).await?.number();
            return Ok(u64::try_from(receivers).ok());
        }
        let lists = self
            .mailboxes(operation, &exchange.name, routing_key)
            .await?;
        for list in &lists {
            self.push_to_mailbox(operation, list, &envelope).await?;
        }
        Ok(Some(lists.len() as u64))
    }

    /// Returns whether an exchange is a pub/sub channel; a direct exchange
    /// leads to lists.
    ///
    /// # Errors
    ///
    /// If Redis has no exchanges of this type.
    pub(crate) fn is_channel(
        &self,
        exchange: &Exchange,
        verb: &'static str,
    ) -> Result<bool, ServiceError> {
        match exchange.kind {
            ExchangeKind::Fanout | ExchangeKind::Topic => Ok(true),
            ExchangeKind::Direct => Ok(false),
            kind => {
                let object = format!("exchange {}", exchange.name);
                let cause = format!("there are no {} exchanges on Redis", kind.name());
                Err(Operation::new(verb, &object).error(
                    &self.client,
                    ServiceErrorKind::Unsupported,
                    cause,
                ))
            }
        }
    }

    /// Returns the lists that are bound with this key, without those of durable
    /// queues: a mailbox list gets a time to live, which a task queue must
    /// never have.
    async fn mailboxes(
        &self,
        operation: Operation<'_>,
        exchange: &str,
        routing_key: &str,
    ) -> Result<Vec<String>, ServiceError> {
        let layout = &self.client.options().layout;
        let sets = [
            layout.bindings(exchange),
            layout.permanent_bindings(exchange),
        ];
        let commands = sets.map(|set| Command::new("SMEMBERS").arg(set)).into();
        let mut members = self.client.pipeline(operation, commands).await?.into_iter();
        let mut bindings = || match members.next() {
            Some(members) => members.map(|members| self.read_bindings(members)),
            None => Ok(Vec::new()),
        };
        let (all, permanent) = (bindings()?, bindings()?);
        let permanent: HashSet<_> = permanent.iter().map(|binding| &binding.queue).collect();
        Ok(all
            .iter()
            .filter(|binding| binding.matches(routing_key))
            .filter(|binding| !permanent.contains(&binding.queue))
            .map(|binding| layout.list_for(&binding.queue, None))
            .collect())
    }

    /// Pushes an envelope to one mailbox.
    async fn push_to_mailbox(
        &self,
        operation: Operation<'_>,
        list: &str,
        envelope: &Bytes,
    ) -> Result<(), ServiceError> {
        let ttl = MIN_MAILBOX_TTL.as_millis().to_string();
        let (keys, arguments) = ([list], [envelope, ttl.as_bytes()]);
        let sent = self
            .client
            .script(operation, &MAILBOX_PUSH, &keys, &arguments);
        sent.await.map(drop)
    }
}
