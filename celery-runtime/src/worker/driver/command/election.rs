//! Elections: one of the workers does what was asked of all.
//!
//! Everybody proposes itself, everybody counts. Python's workers decide when
//! they have heard as many agreements as they know workers; we count those who
//! proposed themselves, and decide when nobody else has for a moment. The lowest
//! clock wins, and of equal ones the lowest name.

use std::time::Duration;

use celery_protocol::{Map, Raw, Serializer, Value, WireSignature};
use tokio::time::Instant;

use crate::worker::driver::{Driver, Finished};

/// How long after the latest proposal an election is decided.
const SILENCE: Duration = Duration::from_millis(500);

/// Elections at the same time; those beyond are not taken part in.
const MOST: usize = 64;

#[derive(Debug)]
pub(crate) struct Election {
    id: String,
    topic: String,
    action: Value,
    best: (u64, String),
    pub(crate) decided_at: Instant,
}

impl Driver {
    /// Proposes this worker.
    pub(crate) fn elect(&mut self, arguments: &Map) {
        let mut fields = Map::new();
        for name in ["id", "topic", "action"] {
            let value = arguments.get(name).cloned().unwrap_or_default();
            fields.insert(name, value);
        }
        fields.insert("cver", 1_i64);
        self.events
            .tell_of_worker("worker-elect", fields, self.now.wall);
    }

    /// Takes note of proposals, our own included.
    pub(crate) fn follow_election(&mut self, events: &[celery_protocol::Event]) {
        for event in events {
            self.logical_clock.adjust(event.clock);
            if event.kind == "worker-elect" {
                self.note_candidate(event);
            }
        }
    }

    pub(crate) fn note_candidate(&mut self, event: &celery_protocol::Event) {
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str);
        let Some(id) = text("id").map(ToOwned::to_owned) else {
            return;
        };
        let candidate = (event.clock, format!("{}.{}", event.hostname, event.pid));
        let decided_at = self.now.instant + SILENCE;
        let is_full = self.elections.len() >= MOST;
        match self.elections.iter_mut().find(|known| known.id == id) {
            Some(known) => {
                known.decided_at = decided_at;
                if candidate < known.best {
                    known.best = candidate;
                }
            }
            None if !is_full => self.elections.push(Election {
                id: id.clone(),
                topic: text("topic").unwrap_or_default().to_owned(),
                action: event.fields.get("action").cloned().unwrap_or_default(),
                best: candidate,
                decided_at,
            }),
            None => return tracing::warn!("election {id} is left out: there are too many"),
        }
        let mut fields = Map::new();
        fields.insert("id", id);
        self.events
            .tell_of_worker("worker-elect-ack", fields, self.now.wall);
    }

    /// Decides the elections whose time has come.
    pub(crate) fn decide_elections(&mut self) {
        let now = self.now.instant;
        let us = format!("{}.{}", self.hostname(), std::process::id());
        while let Some(over) = self
            .elections
            .iter()
            .position(|election| election.decided_at <= now)
        {
            let election = self.elections.swap_remove(over);
            if election.best.1 != us {
                tracing::info!("{} is elected for {}", election.best.1, election.id);
                continue;
            }
            tracing::info!("elected for {}", election.id);
            if election.topic == "task" {
                self.run_elected(&election.action);
            } else {
                tracing::warn!("no elections are held about {:?}", election.topic);
            }
        }
    }

    /// Sends the task that the elected worker is to see to.
    pub(crate) fn run_elected(&mut self, action: &Value) {
        let written = Raw::encode(Serializer::Json, action).map_err(|error| error.to_string());
        let letter = written.and_then(|raw| {
            let signature = WireSignature::read(&raw).map_err(|error| error.to_string())?;
            let letter = self.executor.messages.elected(&signature, self.now.wall);
            letter.map_err(|error| error.to_string())
        });
        match letter {
            Ok(letter) => {
                let broker = std::sync::Arc::clone(&self.supervisor.broker);
                self.futures.push(Box::pin(async move {
                    for sent in broker.publish(&[letter]).await {
                        if let Err(error) = sent {
                            tracing::error!("the elected task was not sent: {error}");
                        }
                    }
                    Finished::Nothing
                }));
            }
            Err(cause) => tracing::error!("the elected task cannot be sent: {cause}"),
        }
    }
}
