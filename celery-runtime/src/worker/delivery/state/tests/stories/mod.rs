//! Stories: a worker, a broker and a result backend, with faults at any point.
//!
//! Each story has one message and a random sequence of events, which follows from a
//! seed. Every effect may be carried out with its answer lost, be carried out late,
//! be refused, or never be sent. At the end the state of the *server* decides: each
//! copy of the message has to be accounted for.
//!
//! `STORY_SEED=N` runs one story and prints its events; `STORY_COUNT=N` sets the
//! number of stories, 2,000 by default (`cargo xtask stories` runs 60,000).

mod policy;
mod random;
mod server;
mod worker;

use std::fmt::Write as _;

use crate::worker::delivery::event::{Outcome, Revocation, Stop};
use random::Random;
use server::{Place, Server};
use worker::{Fate, StoryWorker};

/// Most events before faults cease.
const MAX_EVENTS: u64 = 60;

/// A kind of fault or event. Each story has a random half of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    AnswerLost,
    Late,
    Never,
    NotSent,
    Refused,
    LeaseLost,
    UnnoticedLeaseLoss,
    ConnectionLost,
    OtherWorker,
    RateLimit,
    Revoke,
    Stop,
    Return,
}

const FAULTS: [Fault; 13] = [
    Fault::AnswerLost,
    Fault::Late,
    Fault::Never,
    Fault::NotSent,
    Fault::Refused,
    Fault::LeaseLost,
    Fault::UnnoticedLeaseLoss,
    Fault::ConnectionLost,
    Fault::OtherWorker,
    Fault::RateLimit,
    Fault::Revoke,
    Fault::Stop,
    Fault::Return,
];

/// One story and what has happened in it.
struct Story {
    random: Random,
    faults: Vec<Fault>,
    server: Server,
    worker: StoryWorker,
    events: Vec<String>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let faults = FAULTS.into_iter().filter(|_| random.chance(50)).collect();
        let leased = random.chance(80);
        let delivery = policy::any(&mut random);
        let events = vec![format!("leased: {leased}, {delivery:?}")];
        Self {
            faults,
            server: Server::new(),
            worker: StoryWorker::new(delivery, leased),
            events,
            random,
        }
    }

    fn note(&mut self, event: impl Into<String>) {
        self.events.push(event.into());
    }

    fn note_all(&mut self, events: Option<String>) {
        self.events.extend(events);
    }

    /// Runs the story. The error says what is wrong at the end.
    fn run(&mut self) -> Result<(), String> {
        let count = self.random.below(MAX_EVENTS);
        for _ in 0..count {
            self.step()?;
        }
        self.faults.clear();
        self.note("faults cease");
        for step in 0..60 {
            self.calm_step(step < 30)?;
        }
        self.worker.finish_late_requests(&mut self.server);
        self.check_ledger()
    }

    fn step(&mut self) -> Result<(), String> {
        let fate = self.fate();
        match self.random.below(20) {
            0..=2 => self.receive(),
            3..=5 => self.grant(),
            6..=11 => self.report(fate),
            12..=13 => self.return_task(),
            14..=15 => self.pass(),
            16 => self.lose(),
            17 => self.revoke(),
            18 => self.stop(),
            _ => self.interfere(),
        }?;
        self.worker.advance_late_requests(&mut self.server);
        Ok(())
    }

    fn calm_step(&mut self, receives: bool) -> Result<(), String> {
        if receives {
            self.receive()?;
        }
        self.grant()?;
        self.report(Fate::Answered)?;
        self.return_task()?;
        self.pass()
    }

    /// Chooses what happens to a request.
    fn fate(&mut self) -> Fate {
        let fates: Vec<_> = self
            .faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::AnswerLost => Some(Fate::AnswerLost),
                Fault::Late => Some(Fate::Late),
                Fault::Never => Some(Fate::Never),
                Fault::NotSent => Some(Fate::NotSent),
                Fault::Refused => Some(Fate::Refused),
                _ => None,
            })
            .collect();
        match self.random.choose(&fates) {
            Some(fate) if self.random.chance(60) => fate,
            _ => Fate::Answered,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn receive(&mut self) -> Result<(), String> {
        if self.worker.is_stopping() {
            return Ok(());
        }
        let Some((tag, redelivered)) = self.server.deliver() else {
            return Ok(());
        };
        self.note(format!(
            "the worker receives tag {tag}, redelivered: {redelivered}"
        ));
        self.worker.receive(&self.server, tag, redelivered)
    }

    fn grant(&mut self) -> Result<(), String> {
        if self.has(Fault::RateLimit) && self.random.chance(20) {
            let wait = self.random.below(3000);
            if self.worker.limit_rate(&self.server, wait)? {
                self.note(format!("a rate limit of {wait} ms"));
            }
            return Ok(());
        }
        let granted = self.worker.grant(&self.server)?;
        self.note_all(granted);
        Ok(())
    }

    fn report(&mut self, fate: Fate) -> Result<(), String> {
        let any = self.has(Fault::Return);
        let admission = policy::admission(&mut self.random, any);
        let reported = self.worker.report(&mut self.server, fate, admission)?;
        self.note_all(reported);
        Ok(())
    }

    fn return_task(&mut self) -> Result<(), String> {
        let kind = match self.has(Fault::Return) {
            true => self.random.below(9),
            false => 0,
        };
        let outcome = || -> Outcome { policy::outcome(kind) };
        let returned = self.worker.return_task(&self.server, outcome)?;
        self.note_all(returned);
        Ok(())
    }

    fn pass(&mut self) -> Result<(), String> {
        let milliseconds = match self.faults.is_empty() {
            true => 31_000,
            false => self.random.below(3000),
        };
        if !self.faults.is_empty() {
            self.note(format!("{milliseconds} ms pass"));
        }
        self.worker.pass(&self.server, milliseconds)
    }

    /// The broker takes a delivery back.
    fn lose(&mut self) -> Result<(), String> {
        if self.worker.is_leased() {
            if !self.has(Fault::LeaseLost) {
                return Ok(());
            }
            let notices = !self.has(Fault::UnnoticedLeaseLoss) || self.random.chance(50);
            let lost = self.worker.lose_lease(&mut self.server, notices)?;
            self.note_all(lost);
            return Ok(());
        }
        if self.has(Fault::ConnectionLost) {
            self.note("the connection is lost");
            self.worker.lose_connection(&mut self.server)?;
        }
        Ok(())
    }

    fn revoke(&mut self) -> Result<(), String> {
        if !self.has(Fault::Revoke) {
            return Ok(());
        }
        let revocation = match self.random.chance(50) {
            true => Revocation::Unstarted,
            false => Revocation::Terminate(15),
        };
        self.note(format!("{revocation:?}"));
        self.worker.revoke(&self.server, &revocation)
    }

    fn stop(&mut self) -> Result<(), String> {
        if !self.has(Fault::Stop) {
            return Ok(());
        }
        let stops = [Stop::Warm, Stop::Soft, Stop::Cold];
        let stop = self.random.choose(&stops).unwrap_or(Stop::Warm);
        if self.worker.is_stopping() && self.random.chance(30) {
            self.note("the worker gives up");
            return self.worker.give_up(&self.server);
        }
        self.note(format!("{stop:?} shutdown"));
        self.worker.stop(&self.server, stop)
    }

    /// Another worker takes the message, runs its task and acknowledges it.
    fn interfere(&mut self) -> Result<(), String> {
        if self.has(Fault::OtherWorker)
            && let Some((tag, _)) = self.server.deliver()
        {
            self.note(format!(
                "another worker receives tag {tag}, runs and acknowledges it"
            ));
            self.worker.started_elsewhere(&self.server, tag);
            self.server.apply(&server::Request::Ack(tag));
        }
        Ok(())
    }

    /// Checks each copy of the message on the server.
    fn check_ledger(&self) -> Result<(), String> {
        self.worker.check_settled()?;
        for (copy, place) in self.server.places().iter().enumerate() {
            let accounted = match place {
                Place::Queue => true,
                Place::Unacked(_) => self.worker.is_stopping(),
                Place::Acknowledged | Place::Rejected => {
                    self.server.has_restored(copy) || self.worker.accounts_for(&self.server, copy)
                }
            };
            if !accounted && !self.worker.has_reported_doubt() {
                return Err(format!("copy {copy} of the message is lost: {place:?}"));
            }
        }
        Ok(())
    }
}

/// Runs a story and panics with its events if it ends badly.
fn tell(seed: u64, prints: bool) {
    let mut story = Story::new(seed);
    let ended = story.run();
    let mut text = String::new();
    for event in &story.events {
        let _ = writeln!(text, "  {event}");
    }
    if prints {
        println!("story {seed}:\n{text}");
    }
    if let Err(cause) = ended {
        panic!("{cause}; repeat with STORY_SEED={seed}\n{text}");
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// In every story, each copy of the message ends acknowledged with its task started,
/// ended by a decision, or on the broker; no task starts before its early
/// acknowledgement was carried out; no slot is lost or freed twice.
#[test]
fn every_story_ends_well() {
    if let Some(seed) = variable("STORY_SEED") {
        return tell(seed, true);
    }
    for seed in 0..variable("STORY_COUNT").unwrap_or(2000) {
        tell(seed, false);
    }
}
