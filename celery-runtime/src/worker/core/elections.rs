//! Elections: exactly one of the workers runs a task that was sent to all. Pure.
//!
//! Each worker proposes itself with `worker-elect` and collects the proposals of
//! the others. Celery's workers decide once they have received as many
//! `worker-elect-ack` as they know workers. This worker decides once no further
//! proposal has arrived for [`QUIET_PERIOD`]. The candidate with the lowest
//! logical clock wins; among equal clocks, the lowest name.

use std::time::{Duration, Instant};

use celery_protocol::{Event, Value};

/// How long after the last proposal an election is decided.
const QUIET_PERIOD: Duration = Duration::from_millis(500);

/// Most concurrent elections; further ones are ignored.
const MAX_ELECTIONS: usize = 64;

/// The undecided elections.
#[derive(Debug)]
pub(crate) struct Elections {
    /// The name of this worker as a candidate.
    candidate: String,
    open: Vec<Election>,
}

/// An election, which this worker has won if [`Elections::decide`] returns it.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) action: Value,
    /// Clock and name of the candidate that wins so far.
    leader: (u64, String),
    decided_at: Instant,
}

impl Elections {
    /// `hostname` and `pid` name this worker as a candidate.
    pub(crate) fn new(hostname: &str, pid: u32) -> Self {
        Self {
            candidate: candidate(hostname, pid),
            open: Vec::new(),
        }
    }

    /// Notes the candidate of a `worker-elect`, this worker included. Returns the id of
    /// the election, which is to be acknowledged, or `None` if the proposal is ignored.
    pub(crate) fn note(&mut self, event: &Event, now: Instant) -> Option<String> {
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str);
        let id = text("id")?.to_owned();
        let candidate = (event.clock, candidate(&event.hostname, event.pid));
        let decided_at = now + QUIET_PERIOD;
        if let Some(election) = self.open.iter_mut().find(|known| known.id == id) {
            election.decided_at = decided_at;
            if candidate < election.leader {
                election.leader = candidate;
            }
        } else if self.open.len() < MAX_ELECTIONS {
            self.open.push(Election {
                id: id.clone(),
                topic: text("topic").unwrap_or_default().to_owned(),
                action: event.fields.get("action").cloned().unwrap_or_default(),
                leader: candidate,
                decided_at,
            });
        } else {
            tracing::warn!("ignoring election {id}: more than {MAX_ELECTIONS} are open");
            return None;
        }
        Some(id)
    }

    /// Returns when the next election is decided.
    pub(crate) fn next_decision(&self) -> Option<Instant> {
        self.open.iter().map(|election| election.decided_at).min()
    }

    /// Decides the elections whose quiet period is over, and returns those that this
    /// worker has won.
    pub(crate) fn decide(&mut self, now: Instant) -> Vec<Election> {
        let decided = self
            .open
            .extract_if(.., |election| election.decided_at <= now);
        let won = decided.filter(|Election { id, leader, .. }| {
            let is_won = leader.1 == self.candidate;
            if is_won {
                tracing::info!("election {id}: this worker is elected");
            } else {
                tracing::info!("election {id}: {} is elected", leader.1);
            }
            is_won
        });
        won.collect()
    }
}

fn candidate(hostname: &str, pid: u32) -> String {
    format!("{hostname}.{pid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(id: &str, clock: u64, hostname: &str) -> Event {
        let mut event = Event::new("worker-elect", hostname);
        event.pid = 7;
        event.clock = clock;
        event.fields.insert("id", id);
        event.fields.insert("topic", "task");
        event
    }

    fn ids(won: &[Election]) -> Vec<&str> {
        won.iter().map(|election| &*election.id).collect()
    }

    #[test]
    fn lowest_clock_and_then_lowest_name_is_elected() {
        let now = Instant::now();
        let mut elections = Elections::new("w1@host", 7);
        let proposals = [
            proposal("won", 3, "w1@host"),
            proposal("won", 3, "w2@host"),
            proposal("won", 4, "w0@host"),
            proposal("lost", 3, "w1@host"),
            proposal("lost", 2, "w2@host"),
        ];
        for event in &proposals {
            assert!(elections.note(event, now).is_some());
        }
        let won = elections.decide(now + QUIET_PERIOD);
        assert_eq!(ids(&won), ["won"]);
        assert_eq!(won[0].topic, "task");
        assert_eq!(elections.next_decision(), None);
    }

    #[test]
    fn election_is_decided_after_the_last_proposal() {
        let now = Instant::now();
        let mut elections = Elections::new("w1@host", 7);
        elections.note(&proposal("a", 1, "w1@host"), now);
        let later = now + QUIET_PERIOD / 2;
        elections.note(&proposal("a", 2, "w2@host"), later);
        assert_eq!(elections.next_decision(), Some(later + QUIET_PERIOD));
        assert!(elections.decide(now + QUIET_PERIOD).is_empty());
        assert_eq!(ids(&elections.decide(later + QUIET_PERIOD)), ["a"]);
        assert!(elections.decide(later + QUIET_PERIOD).is_empty());
    }

    #[test]
    fn proposal_without_id_or_above_the_limit_is_ignored() {
        let now = Instant::now();
        let mut elections = Elections::new("w1@host", 7);
        assert_eq!(
            elections.note(&Event::new("worker-elect", "w1@host"), now),
            None
        );
        for number in 0..MAX_ELECTIONS {
            let event = proposal(&number.to_string(), 1, "w1@host");
            assert_eq!(elections.note(&event, now), Some(number.to_string()));
        }
        assert_eq!(elections.note(&proposal("new", 1, "w1@host"), now), None);
        assert!(elections.note(&proposal("0", 2, "w2@host"), now).is_some());
    }
}
