//! Elections: exactly one of the workers runs a task that was sent to all.
//!
//! Each worker proposes itself with `worker-elect` and collects the proposals of
//! the others. Celery's workers decide once they have received as many
//! `worker-elect-ack` as they know workers. This worker decides once no further
//! proposal has arrived for [`QUIET_PERIOD`]. The candidate with the lowest
//! logical clock wins; among equal clocks, the lowest name.

use std::time::{Duration, Instant};

use celery_protocol::{Map, Raw, Serializer, Value, WireSignature};

use crate::worker::driver::{Driver, Finished};

/// How long after the last proposal an election is decided.
const QUIET_PERIOD: Duration = Duration::from_millis(500);

/// Most concurrent elections; further ones are ignored.
const MAX_ELECTIONS: usize = 64;

#[derive(Debug)]
pub(crate) struct Election {
    id: String,
    topic: String,
    action: Value,
    /// Clock and name of the candidate that wins so far.
    leader: (u64, String),
    pub(crate) decided_at: Instant,
}

impl Driver {
    /// Proposes this worker as a candidate.
    pub(crate) fn propose_candidate(&mut self, arguments: &Map) {
        let mut fields = Map::new();
        for name in ["id", "topic", "action"] {
            let value = arguments.get(name).cloned().unwrap_or_default();
            fields.insert(name, value);
        }
        fields.insert("cver", 1_i64);
        self.monitor
            .dispatcher
            .worker_event("worker-elect", fields, self.now.wall);
    }

    /// Handles proposals, including those of this worker.
    pub(crate) fn handle_election_events(&mut self, events: &[celery_protocol::Event]) {
        for event in events {
            self.monitor.logical_clock.adjust(event.clock);
            if event.kind == "worker-elect" {
                self.add_candidate(event);
            }
        }
    }

    pub(crate) fn add_candidate(&mut self, event: &celery_protocol::Event) {
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str);
        let Some(id) = text("id").map(ToOwned::to_owned) else {
            return;
        };
        let candidate = (event.clock, format!("{}.{}", event.hostname, event.pid));
        let decided_at = self.now.instant + QUIET_PERIOD;
        let is_full = self.remote.elections.len() >= MAX_ELECTIONS;
        match self
            .remote
            .elections
            .iter_mut()
            .find(|known| known.id == id)
        {
            Some(election) => {
                election.decided_at = decided_at;
                if candidate < election.leader {
                    election.leader = candidate;
                }
            }
            None if !is_full => self.remote.elections.push(Election {
                id: id.clone(),
                topic: text("topic").unwrap_or_default().to_owned(),
                action: event.fields.get("action").cloned().unwrap_or_default(),
                leader: candidate,
                decided_at,
            }),
            None => {
                return tracing::warn!(
                    "ignoring election {id}: more than {MAX_ELECTIONS} are open"
                );
            }
        }
        let mut fields = Map::new();
        fields.insert("id", id);
        self.monitor
            .dispatcher
            .worker_event("worker-elect-ack", fields, self.now.wall);
    }

    /// Decides the elections whose quiet period is over.
    pub(crate) fn decide_elections(&mut self) {
        let now = self.now.instant;
        let this_worker = format!("{}.{}", self.hostname(), std::process::id());
        while let Some(decided) = self
            .remote
            .elections
            .iter()
            .position(|election| election.decided_at <= now)
        {
            let election = self.remote.elections.swap_remove(decided);
            if election.leader.1 != this_worker {
                tracing::info!("election {}: {} is elected", election.id, election.leader.1);
                continue;
            }
            tracing::info!("election {}: this worker is elected", election.id);
            if election.topic == "task" {
                self.publish_elected_task(&election.action);
            } else {
                tracing::warn!(
                    "election {}: unknown topic {:?}",
                    election.id,
                    election.topic
                );
            }
        }
    }

    /// Publishes the task of an election that this worker has won.
    pub(crate) fn publish_elected_task(&mut self, action: &Value) {
        let encoded = Raw::encode(Serializer::Json, action).map_err(|error| error.to_string());
        let publication = encoded.and_then(|raw| {
            let signature = WireSignature::read(&raw).map_err(|error| error.to_string())?;
            let publication = self.executor.messages.elected(&signature, self.now.wall);
            publication.map_err(|error| error.to_string())
        });
        match publication {
            Ok(publication) => {
                let broker = std::sync::Arc::clone(&self.connection.supervisor.broker);
                self.futures.push(Box::pin(async move {
                    for sent in broker.publish(&[publication]).await {
                        if let Err(error) = sent {
                            tracing::error!("cannot send the elected task: {error}");
                        }
                    }
                    Finished::Nothing
                }));
            }
            Err(cause) => tracing::error!("cannot create the message of the elected task: {cause}"),
        }
    }
}
