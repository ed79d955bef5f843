//! Elections: proposals, and the tasks of elections that this worker has won.

use std::sync::Arc;

use celery_protocol::{Event, Map, Raw, Serializer, Value, WireSignature};

use crate::worker::driver::{Driver, Finished};

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
            .election_event("worker-elect", fields, self.now.wall);
    }

    /// Handles proposals, including those of this worker.
    pub(crate) fn handle_election_events(&mut self, events: &[Event]) {
        for event in events {
            self.monitor.logical_clock.adjust(event.clock);
            if event.kind != "worker-elect" {
                continue;
            }
            if let Some(id) = self.remote.elections.note(event, self.now.instant) {
                let mut fields = Map::new();
                fields.insert("id", id);
                self.monitor
                    .election_event("worker-elect-ack", fields, self.now.wall);
            }
        }
    }

    /// Decides the elections whose quiet period is over.
    pub(crate) fn decide_elections(&mut self) {
        for election in self.remote.elections.decide(self.now.instant) {
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
                let broker = Arc::clone(self.connection.broker());
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
