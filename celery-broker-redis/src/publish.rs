//! From publications to lists and channels.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use celery_protocol::{Message, kombu};
use celery_runtime::{ExchangeKind, Publication, Queue, ServiceError, ServiceErrorKind};

use crate::binding::Binding;
use crate::link::{Attempt, Command};
use crate::shared::Shared;

/// By exchange.
type Bindings<'a> = HashMap<&'a str, Vec<Binding>>;

impl Shared {
    /// Sends a batch: one round trip, and one before it for exchanges whose
    /// bindings have to be read. What has to be declared takes some more.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let (bindings, refused) = match self.bound(batch).await {
            Ok(bound) => bound,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut plan = Plan::default();
        let mut outcomes: Vec<Result<(), ServiceError>> = Vec::with_capacity(batch.len());
        for (number, publication) in batch.iter().enumerate() {
            let refused = declare_queue(publication).and_then(|queue| refused.get(&*queue.name));
            outcomes.push(match refused {
                Some(error) => Err(error.clone()),
                None => self.plan(&mut plan, number, publication, &bindings),
            });
        }
        let (commands, publications) = plan.into_commands();
        if commands.is_empty() {
            return outcomes;
        }
        let object = match batch {
            [one] if one.exchange.is_empty() => format!("queue {}", one.routing_key),
            [one] => format!("exchange {}", one.exchange),
            _ => format!("{} queues", commands.len()),
        };
        let attempt = Attempt::new("publish to", &object);
        match self.link.pipeline(attempt, commands).await {
            Ok(answers) => {
                for (answer, numbers) in answers.into_iter().zip(publications) {
                    if let Err(error) = answer {
                        fail(&mut outcomes, &numbers, &error);
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

    /// The channel of a fanout exchange.
    pub(crate) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        let options = self.link.options();
        let before = options.channel_prefix();
        match routing_key {
            key if !key.is_empty() && options.layout.fanout_patterns => {
                format!("{before}{exchange}/{key}")
            }
            _ => format!("{before}{exchange}"),
        }
    }

    /// The envelope of a message, under a delivery tag of its own.
    pub(crate) fn envelope(
        &self,
        message: &Message,
        exchange: &str,
        routing_key: &str,
    ) -> Result<Bytes, ServiceError> {
        let route = kombu::Route {
            exchange,
            routing_key,
        };
        let tag = uuid::Uuid::new_v4().to_string();
        let encoded = kombu::encode(message, route, &tag).map_err(|error| {
            let object = format!("queue or exchange {exchange}{routing_key}");
            let attempt = Attempt::new("publish to", &object);
            attempt
                .error(&self.link, ServiceErrorKind::Invalid, error.to_string())
                .with_source(error)
        })?;
        Ok(encoded.into())
    }

    fn plan(
        &self,
        plan: &mut Plan,
        number: usize,
        publication: &Publication,
        bindings: &Bindings<'_>,
    ) -> Result<(), ServiceError> {
        let Publication {
            message,
            exchange,
            routing_key,
            ..
        } = publication;
        let envelope = self.envelope(message, exchange, routing_key)?;
        let priority = message.properties.priority;
        let list = |queue: &str| self.link.options().layout.list_for(queue, priority);
        if exchange.is_empty() {
            plan.push(list(routing_key), number, envelope);
            return Ok(());
        }
        let Some(bindings) = bindings.get(exchange.as_str()) else {
            plan.broadcast(self.channel(exchange, routing_key), number, envelope);
            return Ok(());
        };
        let mut led = false;
        for binding in bindings.iter().filter(|binding| binding.leads(routing_key)) {
            led = true;
            plan.push(list(&binding.queue), number, envelope.clone());
        }
        match led {
            true => Ok(()),
            false => Err(self.unroutable(exchange, routing_key)),
        }
    }

    /// The bindings that the batch needs, once the queues that it is meant for
    /// are bound; and those that cannot be, by name.
    async fn bound<'a>(
        &self,
        batch: &'a [Publication],
    ) -> Result<(Bindings<'a>, HashMap<&'a str, ServiceError>), ServiceError> {
        let bindings = self.bindings_for(batch).await?;
        let mut refused = HashMap::new();
        let mut looked_at = HashSet::new();
        for publication in batch {
            let Some(queue) = declare_queue(publication) else {
                continue;
            };
            let is_bound = self.has_declared(queue) && leads_to(&bindings, publication, queue);
            if is_bound || !looked_at.insert(queue.name.as_str()) {
                continue;
            }
            match self.declare(queue).await {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => drop(refused.insert(queue.name.as_str(), error)),
                Ok(()) => {}
            }
        }
        match looked_at.is_empty() {
            true => Ok((bindings, refused)),
            false => Ok((self.bindings_for(batch).await?, refused)),
        }
    }

    /// The bindings of all exchanges in the batch but fanout ones.
    async fn bindings_for<'a>(
        &self,
        batch: &'a [Publication],
    ) -> Result<Bindings<'a>, ServiceError> {
        let names: HashSet<&str> = batch
            .iter()
            .map(|publication| publication.exchange.as_str())
            .filter(|exchange| !exchange.is_empty())
            .filter(|exchange| self.kind(exchange) != Some(ExchangeKind::Fanout))
            .collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let names: Vec<_> = names.into_iter().collect();
        let commands = names
            .iter()
            .map(|exchange| self.members(exchange))
            .collect();
        let attempt = Attempt::new("read the bindings of", "exchanges");
        let members = self.link.pipeline(attempt, commands).await?;
        let mut bindings = HashMap::new();
        for (exchange, members) in names.into_iter().zip(members) {
            bindings.insert(exchange, self.read_bindings(members?));
        }
        Ok(bindings)
    }

    fn unroutable(&self, exchange: &str, routing_key: &str) -> ServiceError {
        let object = format!("exchange {exchange:?} with routing key {routing_key:?}");
        Attempt::new("publish to", &object).error(
            &self.link,
            ServiceErrorKind::Unroutable,
            "no queue is bound to it by that key",
        )
    }
}

/// The queue to declare before a publication. The anonymous exchange leads to
/// every list without.
fn declare_queue(publication: &Publication) -> Option<&Queue> {
    let queue = publication.queue.as_deref();
    queue.filter(|_| !publication.exchange.is_empty())
}

/// Whether there is any binding to the queue. One that is gone, as after a
/// restart without persistence, is made anew. Channels need none.
fn leads_to(bindings: &Bindings<'_>, publication: &Publication, queue: &Queue) -> bool {
    let bindings = bindings.get(publication.exchange.as_str());
    bindings.is_none_or(|bindings| bindings.iter().any(|one| one.queue == queue.name))
}

fn fail(outcomes: &mut [Result<(), ServiceError>], numbers: &[usize], error: &ServiceError) {
    for number in numbers {
        if let Some(outcome @ Ok(())) = outcomes.get_mut(*number) {
            *outcome = Err(error.clone());
        }
    }
}

/// The commands of one batch: one `LPUSH` for all messages of a list, in their
/// order, and the publications of the batch that each command carries.
#[derive(Default)]
struct Plan {
    commands: Vec<(Command, Vec<usize>)>,
    lists: HashMap<String, usize>,
}

impl Plan {
    fn push(&mut self, list: String, number: usize, envelope: Bytes) {
        let at = match self.lists.get(&list) {
            Some(at) => *at,
            None => {
                self.commands
                    .push((Command::new("LPUSH").arg(&list), Vec::new()));
                self.lists.insert(list, self.commands.len() - 1);
                self.commands.len() - 1
            }
        };
        let (command, numbers) = &mut self.commands[at];
        command.push(envelope);
        numbers.push(number);
    }

    fn broadcast(&mut self, channel: String, number: usize, envelope: Bytes) {
        let command = Command::new("PUBLISH").arg(channel).arg(envelope);
        self.commands.push((command, vec![number]));
    }

    fn into_commands(self) -> (Vec<Command>, Vec<Vec<usize>>) {
        self.commands.into_iter().unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_list_share_a_command() {
        let mut plan = Plan::default();
        plan.push("one".into(), 0, Bytes::new());
        plan.push("two".into(), 1, Bytes::new());
        plan.push("one".into(), 2, Bytes::new());
        plan.broadcast("/0.x".into(), 3, Bytes::new());
        let (commands, numbers) = plan.into_commands();
        assert_eq!(commands.len(), 3);
        assert_eq!(numbers, [vec![0, 2], vec![1], vec![3]]);
    }
}
