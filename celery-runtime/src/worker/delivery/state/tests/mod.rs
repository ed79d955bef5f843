//! Tests of the state machine without a driver: single sequences of events, by
//! subject, and random stories.

mod admission;
mod connection;
mod outcomes;
mod stories;

use std::time::{Duration, Instant, UNIX_EPOCH};

use celery_protocol::Raw;

use crate::env::Now;
use crate::execution::{ProcessLost, TaskError};
use crate::worker::delivery::event::{
    Action, Continuations, DeliveryEvent, Effect, ExecutionPolicy, FollowUp, Outcome, StateUpdate,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::workflow::effect::{Completion, WorkflowEffect};

/// A clock that the test moves.
#[derive(Clone, Copy)]
struct Time(Now);

impl Time {
    fn new() -> Self {
        Self(Now {
            wall: UNIX_EPOCH + Duration::from_secs(1_795_000_000),
            instant: Instant::now(),
        })
    }

    fn pass(&mut self, time: Duration) {
        self.0.wall += time;
        self.0.instant += time;
    }
}

fn policy() -> ExecutionPolicy {
    ExecutionPolicy {
        acks_late: false,
        acks_on_failure: true,
        acks_on_timeout: true,
        emits_events: false,
        checks_admission: false,
        requeued_when_lost: false,
        stores_result: true,
        stores_errors: false,
        track_started: false,
        continuations: Continuations::default(),
        eta: None,
        expires: None,
        soft_limit: None,
        hard_limit: None,
        retries: 0,
        max_retries: Some(3),
        retry_delay: Duration::from_secs(180),
        autoretry: None,
    }
}

fn late() -> ExecutionPolicy {
    ExecutionPolicy {
        acks_late: true,
        ..policy()
    }
}

fn value() -> DeliveryEvent {
    DeliveryEvent::Returned(Outcome::Value(Some(Raw::json("1"))))
}

fn error(error: TaskError) -> DeliveryEvent {
    DeliveryEvent::Returned(Outcome::Error { error, random: 0.5 })
}

/// Handles an event and returns the names of the actions.
fn handle(state: &mut DeliveryState, event: DeliveryEvent, time: Time) -> Vec<String> {
    let mut actions = Vec::new();
    state.handle(event, time.0, &mut actions);
    actions.iter().map(name).collect()
}

/// Returns a short name of an action and its main values.
fn name(action: &Action) -> String {
    match action {
        Action::Effect(Effect::Settle(disposition)) => format!("{disposition:?}"),
        Action::Effect(Effect::Store(update)) => match update {
            StateUpdate::Started => "store STARTED".to_owned(),
            StateUpdate::Success(_) => "store SUCCESS".to_owned(),
            StateUpdate::Failure(failure_info) => {
                format!("store FAILURE {}", failure_info.exception.exc_type)
            }
            StateUpdate::Retry(failure_info) => {
                format!("store RETRY {}", failure_info.exception.exc_type)
            }
            StateUpdate::Revoked(reason) => format!("store REVOKED {reason}"),
        },
        Action::Effect(Effect::Send(sent)) => match sent {
            FollowUp::Retry { eta, .. } => format!("send retry {}", eta.is_some()),
            FollowUp::Success(_) => "send success".to_owned(),
            FollowUp::Replacement(_) => "send replacement".to_owned(),
            FollowUp::DeadLetter => "send dead".to_owned(),
        },
        Action::Effect(Effect::Continue(completion)) => match completion {
            Completion::Succeeded(_) => "continue on success".to_owned(),
            Completion::Failed(_) => "continue on failure".to_owned(),
            Completion::Revoked(_) => "continue on revocation".to_owned(),
            Completion::Joined { .. } => "continue on join".to_owned(),
        },
        Action::Effect(Effect::Workflow(WorkflowEffect::CallErrback(_))) => {
            "call errback".to_owned()
        }
        Action::Effect(Effect::Workflow(WorkflowEffect::Send(_))) => "send workflow".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Checks the actions after each of a series of events, for a task with this policy.
fn check_sequence(policy: ExecutionPolicy, events: Vec<(DeliveryEvent, &[&str])>) {
    let time = Time::new();
    let mut state = DeliveryState::of_task(policy);
    for (index, (event, expected)) in events.into_iter().enumerate() {
        let shown = format!("{event:?}");
        assert_eq!(
            handle(&mut state, event, time),
            expected,
            "event {index}: {shown}"
        );
    }
}

fn lost(began: bool) -> Outcome {
    Outcome::Lost(ProcessLost {
        message: "Worker exited prematurely".to_owned(),
        began,
    })
}
