//! Publishing: from publications to lists and channels.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use celery_protocol::{Message, kombu};
use celery_runtime::{ExchangeKind, Publication, Queue, ServiceError, ServiceErrorKind, env};

use crate::binding::StoredBinding;
use crate::client::{Command, Operation};
use crate::shared::Shared;

/// Bindings by exchange.
type BindingsByExchange<'a> = HashMap<&'a str, Vec<StoredBinding>>;

impl Shared {
    /// Publishes a batch in one round trip, plus one if bindings of exchanges
    /// have to be read, plus those of queues that have to be declared.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let (bindings, refused) = match self.resolve_bindings(batch).await {
            Ok(resolved) => resolved,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut commands = CommandBatch::default();
        let mut outcomes: Vec<Result<(), ServiceError>> = Vec::with_capacity(batch.len());
        for (index, publication) in batch.iter().enumerate() {
            let refused = declare_queue(publication).and_then(|queue| refused.get(&*queue.name));
            outcomes.push(match refused {
                Some(error) => Err(error.clone()),
                None => self.add_commands(&mut commands, index, publication, &bindings),
            });
        }
        let (commands, publications) = commands.into_commands();
        if commands.is_empty() {
            return outcomes;
        }
        let object = match batch {
            [one] if one.exchange.is_empty() => format!("queue {}", one.routing_key),
            [one] => format!("exchange {}", one.exchange),
            _ => format!("{} queues", commands.len()),
        };
        let operation = Operation::new("publish to", &object);
        match self.client.pipeline(operation, commands).await {
            Ok(answers) => {
                for (answer, indexes) in answers.into_iter().zip(publications) {
                    if let Err(error) = answer {
                        fail(&mut outcomes, &indexes, &error);
                    }
                }
            }
            Err(error) => {
                let all: Vec<_> = publications.into_iter().flatten().collect();
                fail(&mut outcomes, &all, &error);
            }
        }
        outcomes
    }

    /// Returns the channel of a fanout exchange.
    pub(crate) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        let options = self.client.options();
        let before = options.channel_prefix();
        match routing_key {
            key if !key.is_empty() && options.layout.fanout_patterns => {
                format!("{before}{exchange}/{key}")
            }
            _ => format!("{before}{exchange}"),
        }
    }

    /// Returns the envelope of a message, with a new delivery tag.
    pub(crate) fn envelope(
        &self,
        message: &Message,
        exchange: &str,
        routing_key: &str,
    ) -> Result<Bytes, ServiceError> {
        let route = kombu::EnvelopeRoute {
            exchange,
            routing_key,
        };
        let tag = env::uuid();
        let encoded = kombu::encode(message, route, &tag).map_err(|error| {
            let object = format!("queue or exchange {exchange}{routing_key}");
            let operation = Operation::new("publish to", &object);
            operation
                .error(&self.client, ServiceErrorKind::Invalid, error.to_string())
                .with_source(error)
        })?;
        Ok(encoded.into())
    }

    /// Adds the commands of one publication.
    fn add_commands(
        &self,
        commands: &mut CommandBatch,
        index: usize,
        publication: &Publication,
        bindings: &BindingsByExchange<'_>,
    ) -> Result<(), ServiceError> {
        let Publication {
            message,
            exchange,
            routing_key,
            ..
        } = publication;
        publication.check_address()?;
        let envelope = self.envelope(message, exchange, routing_key)?;
        let priority = message.properties.priority;
        let list = |queue: &str| self.client.options().layout.list_for(queue, priority);
        if exchange.is_empty() {
            commands.push(list(routing_key), index, envelope);
            return Ok(());
        }
        let Some(bindings) = bindings.get(exchange.as_str()) else {
            commands.broadcast(self.channel(exchange, routing_key), index, envelope);
            return Ok(());
        };
        let mut is_routed = false;
        for binding in bindings
            .iter()
            .filter(|binding| binding.matches(routing_key))
        {
            is_routed = true;
            commands.push(list(&binding.queue), index, envelope.clone());
        }
        if is_routed {
            Ok(())
        } else {
            Err(self.unroutable(exchange, routing_key))
        }
    }

    /// Declares those queues of the batch that are not bound, then returns the
    /// bindings of the batch, and the errors of failed declarations by queue.
    async fn resolve_bindings<'a>(
        &self,
        batch: &'a [Publication],
    ) -> Result<(BindingsByExchange<'a>, HashMap<&'a str, ServiceError>), ServiceError> {
        let bindings = self.bindings_for(batch).await?;
        let mut refused = HashMap::new();
        let mut checked = HashSet::new();
        for publication in batch {
            let Some(queue) = declare_queue(publication) else {
                continue;
            };
            let is_bound = self.has_declared(queue) && is_bound_to(&bindings, publication, queue);
            if is_bound || !checked.insert(queue.name.as_str()) {
                continue;
            }
            match self.declare(queue).await {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => drop(refused.insert(queue.name.as_str(), error)),
                Ok(()) => {}
            }
        }
        if checked.is_empty() {
            Ok((bindings, refused))
        } else {
            Ok((self.bindings_for(batch).await?, refused))
        }
    }

    /// Returns the bindings of all exchanges in the batch, except fanout
    /// exchanges.
    async fn bindings_for<'a>(
        &self,
        batch: &'a [Publication],
    ) -> Result<BindingsByExchange<'a>, ServiceError> {
        let names: BTreeSet<&str> = batch
            .iter()
            .map(|publication| publication.exchange.as_str())
            .filter(|exchange| !exchange.is_empty())
            .filter(|exchange| self.kind(exchange) != Some(ExchangeKind::Fanout))
            .collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let commands = names
            .iter()
            .map(|exchange| self.members(exchange))
            .collect();
        let operation = Operation::new("read the bindings of", "exchanges");
        let members = self.client.pipeline(operation, commands).await?;
        let mut bindings = HashMap::new();
        for (exchange, members) in names.into_iter().zip(members) {
            bindings.insert(exchange, self.read_bindings(members?));
        }
        Ok(bindings)
    }

    fn unroutable(&self, exchange: &str, routing_key: &str) -> ServiceError {
        let object = format!("exchange {exchange:?} with routing key {routing_key:?}");
        Operation::new("publish to", &object).error(
            &self.client,
            ServiceErrorKind::Unroutable,
            "no queue is bound with this key",
        )
    }
}

/// Returns the queue to declare before a publication. The anonymous exchange
/// routes to any list without a declaration.
fn declare_queue(publication: &Publication) -> Option<&Queue> {
    let queue = publication.queue.as_deref();
    queue.filter(|_| !publication.exchange.is_empty())
}

/// Returns whether the exchange has any binding to the queue. A binding that
/// was lost, as after a restart without persistence, is made again. Channels
/// need none.
fn is_bound_to(
    bindings: &BindingsByExchange<'_>,
    publication: &Publication,
    queue: &Queue,
) -> bool {
    let bindings = bindings.get(publication.exchange.as_str());
    bindings.is_none_or(|bindings| bindings.iter().any(|one| one.queue == queue.name))
}

/// Sets an error for those publications that have none.
fn fail(outcomes: &mut [Result<(), ServiceError>], indexes: &[usize], error: &ServiceError) {
    for index in indexes {
        if let Some(outcome @ Ok(())) = outcomes.get_mut(*index) {
            *outcome = Err(error.clone());
        }
    }
}

/// The commands of one batch, each with the indexes of its publications. All
/// messages of one list share an `LPUSH`, in their order.
#[derive(Default)]
struct CommandBatch {
    commands: Vec<(Command, Vec<usize>)>,
    lists: HashMap<String, usize>,
}

impl CommandBatch {
    fn push(&mut self, list: String, index: usize, envelope: Bytes) {
        let at = match self.lists.get(&list) {
            Some(at) => *at,
            None => {
                self.commands
                    .push((Command::new("LPUSH").arg(&list), Vec::new()));
                self.lists.insert(list, self.commands.len() - 1);
                self.commands.len() - 1
            }
        };
        let (command, indexes) = &mut self.commands[at];
        command.push(envelope);
        indexes.push(index);
    }

    fn broadcast(&mut self, channel: String, index: usize, envelope: Bytes) {
        let command = Command::new("PUBLISH").arg(channel).arg(envelope);
        self.commands.push((command, vec![index]));
    }

    fn into_commands(self) -> (Vec<Command>, Vec<Vec<usize>>) {
        self.commands.into_iter().unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_for_one_list_share_a_command() {
        let mut commands = CommandBatch::default();
        commands.push("one".into(), 0, Bytes::new());
        commands.push("two".into(), 1, Bytes::new());
        commands.push("one".into(), 2, Bytes::new());
        commands.broadcast("/0.x".into(), 3, Bytes::new());
        let (commands, indexes) = commands.into_commands();
        assert_eq!(commands.len(), 3);
        assert_eq!(indexes, [vec![0, 2], vec![1], vec![3]]);
    }
}
