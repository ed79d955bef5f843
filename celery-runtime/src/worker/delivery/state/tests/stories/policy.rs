//! Random deliveries, admissions and outcomes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::Raw;

use super::random::Random;
use crate::config::OnUnknown;
use crate::execution::TaskError;
use crate::task::Conflict;
use crate::worker::delivery::event::{
    Admission, Continuations, ExecutionPolicy, Outcome, Rejection,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{lost, policy};

/// What the message is for this worker.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Task(ExecutionPolicy),
    Rejected(OnUnknown),
}

impl Kind {
    pub(super) fn state(&self) -> DeliveryState {
        match self {
            Self::Task(policy) => DeliveryState::of_task(policy.clone()),
            Self::Rejected(on_unknown) => {
                let rejection = Rejection {
                    reason: "malformed",
                    detail: String::new(),
                    task: None,
                };
                DeliveryState::of_rejected(rejection, *on_unknown)
            }
        }
    }

    pub(super) fn acks_early(&self) -> bool {
        matches!(self, Self::Task(policy) if !policy.acks_late)
    }

    pub(super) fn expires(&self) -> Option<SystemTime> {
        match self {
            Self::Task(policy) => policy.expires,
            Self::Rejected(_) => None,
        }
    }
}

pub(super) fn any(random: &mut Random) -> Kind {
    if random.chance(15) {
        let choices = [
            OnUnknown::Keep,
            OnUnknown::Reject,
            OnUnknown::Requeue(Duration::from_secs(1)),
        ];
        return Kind::Rejected(random.choose(&choices).unwrap_or(OnUnknown::Keep));
    }
    let start = UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    let time = |random: &mut Random| match random.below(4) {
        0 => Some(start - Duration::from_secs(1)),
        1 => Some(start + Duration::from_secs(2)),
        _ => None,
    };
    let limit = |random: &mut Random| {
        let seconds = random.below(6);
        (seconds > 0 && seconds < 4).then(|| Duration::from_secs(seconds))
    };
    Kind::Task(ExecutionPolicy {
        acks_late: random.chance(50),
        acks_on_failure: random.chance(70),
        acks_on_timeout: random.chance(70),
        requeued_when_lost: random.chance(50),
        stores_result: random.chance(70),
        stores_errors: random.chance(50),
        track_started: random.chance(40),
        continuations: Continuations {
            on_success: random.chance(30),
            on_failure: random.chance(30),
            in_chord: random.chance(30),
        },
        emits_events: random.chance(50),
        checks_admission: random.chance(40),
        eta: time(random),
        expires: time(random),
        soft_limit: limit(random),
        hard_limit: limit(random),
        retries: u32::try_from(random.below(5)).unwrap_or_default(),
        ..policy()
    })
}

pub(super) fn admission(random: &mut Random, any: bool) -> Admission {
    if !any || random.chance(70) {
        return Admission::Start;
    }
    match random.below(5) {
        0 => Admission::Revoked,
        1 => Admission::Succeeded(Raw::json("1")),
        2 => Admission::Taken(Conflict::Wait),
        3 => Admission::Taken(Conflict::Drop),
        _ => Admission::Taken(Conflict::Fail),
    }
}

pub(super) fn outcome(kind: u64) -> Outcome {
    let error = match kind {
        0 | 1 => return Outcome::Value(Some(Raw::json("1"))),
        2 => return Outcome::Panic("oh".to_owned()),
        7 | 8 => return lost(kind == 8),
        3 => TaskError::retry().after(Duration::from_secs(1)),
        4 => TaskError::ignore(),
        5 => TaskError::reject("no", crate::Requeue::Yes),
        _ => TaskError::exception("ValueError", "no"),
    };
    Outcome::Error { error, random: 0.5 }
}
