//! Effects of the ways in which a task can end, and failures of these effects.

use std::sync::Arc;
use std::time::Duration;

use crate::config::OnUnknown;
use crate::execution::TaskError;
use crate::worker::delivery::event::{
    Continuations, DeliveryEvent, EffectError, ExecutionPolicy, Rejection,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{
    Time, check_sequence, error, handle, late, lost, policy, value,
};
use crate::worker::workflow::effect::WorkflowEffect;

#[test]
fn early_task_is_acknowledged_before_start() {
    check_sequence(
        policy(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            (DeliveryEvent::Done, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn late_task_is_acknowledged_after_result() {
    check_sequence(
        ExecutionPolicy {
            track_started: true,
            continuations: Continuations {
                on_success: true,
                on_failure: true,
                in_chord: false,
            },
            ..late()
        },
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["store STARTED"]),
            (DeliveryEvent::Done, &["Start"]),
            (value(), &["FreeSlot", "send success"]),
            (DeliveryEvent::Done, &["store SUCCESS"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn failed_task_is_stored_continued_and_acknowledged() {
    let continuations = Continuations {
        on_success: true,
        on_failure: true,
        in_chord: false,
    };
    check_sequence(
        ExecutionPolicy {
            continuations,
            ..late()
        },
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (
                error(TaskError::exception("ValueError", "no")),
                &["FreeSlot", "store FAILURE ValueError"],
            ),
            (DeliveryEvent::Done, &["continue on failure"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn workflow_effects_are_done_before_settlement() {
    let continuations = Continuations {
        in_chord: true,
        ..Continuations::default()
    };
    let follow_up = || WorkflowEffect::Send(Arc::default());
    check_sequence(
        ExecutionPolicy {
            continuations,
            ..late()
        },
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["continue on success"]),
            (
                DeliveryEvent::DoneWith(vec![follow_up(), follow_up()]),
                &["send workflow"],
            ),
            (
                DeliveryEvent::DoneWith(vec![follow_up()]),
                &["send workflow"],
            ),
            (DeliveryEvent::Done, &["send workflow"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn replaced_task_stores_nothing() {
    let replacement = crate::canvas::Canvas::group([]);
    check_sequence(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (
                error(TaskError::replace(replacement)),
                &["FreeSlot", "send replacement"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn task_errors_lead_to_retry_rejection_or_ack() {
    let running = |policy: ExecutionPolicy, end: TaskError, expected: &[&str]| {
        let time = Time::new();
        let mut state = DeliveryState::of_task(policy);
        handle(&mut state, DeliveryEvent::Arrived, time);
        handle(&mut state, DeliveryEvent::SlotGranted, time);
        let mut actions = handle(&mut state, error(end), time);
        while actions.last().is_some_and(|last| last != "Remove") {
            actions.extend(handle(&mut state, DeliveryEvent::Done, time));
        }
        assert_eq!(actions[1..], *expected);
    };
    running(
        late(),
        TaskError::retry(),
        &["store RETRY Retry", "send retry true", "Ack", "Remove"],
    );
    let immediate = TaskError::retry().after(Duration::ZERO);
    running(
        late(),
        immediate,
        &["store RETRY Retry", "send retry false", "Ack", "Remove"],
    );
    let exhausted = ExecutionPolicy {
        retries: 3,
        ..late()
    };
    running(
        exhausted,
        TaskError::retry(),
        &["store FAILURE MaxRetriesExceededError", "Ack", "Remove"],
    );
    running(late(), TaskError::ignore(), &["Ack", "Remove"]);
    let reject = |requeue| TaskError::reject("no", requeue);
    running(
        late(),
        reject(crate::Requeue::Yes),
        &["Requeue(Tail)", "Remove"],
    );
    running(
        late(),
        reject(crate::Requeue::No),
        &["store FAILURE Reject", "Reject", "Remove"],
    );
    let rejecting = ExecutionPolicy {
        acks_on_failure: false,
        ..late()
    };
    running(
        rejecting,
        TaskError::exception("ValueError", "no"),
        &["store FAILURE ValueError", "Reject", "Remove"],
    );
}

#[test]
fn task_of_lost_process_fails_or_is_requeued() {
    let failed: &[&str] = &["FreeSlot", "store FAILURE WorkerLostError"];
    let requeued: &[&str] = &["FreeSlot", "Requeue(Tail)"];
    let requeueing = ExecutionPolicy {
        requeued_when_lost: true,
        ..late()
    };
    let early = ExecutionPolicy {
        acks_late: false,
        ..requeueing.clone()
    };
    for (policy, began, expected) in [
        (late(), true, failed),
        (requeueing.clone(), true, requeued),
        (requeueing, false, requeued),
        // The task did not begin.
        (late(), false, requeued),
        // The message is acknowledged.
        (early.clone(), true, failed),
        (early, false, failed),
    ] {
        let time = Time::new();
        let mut state = DeliveryState::of_task(policy);
        handle(&mut state, DeliveryEvent::Arrived, time);
        while !state.is_running() {
            handle(&mut state, DeliveryEvent::SlotGranted, time);
            handle(&mut state, DeliveryEvent::Done, time);
        }
        let actions = handle(&mut state, DeliveryEvent::Returned(lost(began)), time);
        assert_eq!(actions, expected);
    }
}

#[test]
fn failed_effect_is_repeated_until_success() {
    let mut time = Time::new();
    let mut state = DeliveryState::of_task(late());
    handle(&mut state, DeliveryEvent::Arrived, time);
    handle(&mut state, DeliveryEvent::SlotGranted, time);
    assert_eq!(
        handle(&mut state, value(), time),
        ["FreeSlot", "store SUCCESS"]
    );
    for _ in 0..50 {
        assert!(
            handle(
                &mut state,
                DeliveryEvent::Failed(EffectError::Unknown),
                time
            )
            .is_empty()
        );
        let delay = state.timeout().unwrap() - time.0.instant;
        assert!(delay <= Duration::from_secs(2));
        time.pass(delay);
        assert_eq!(
            handle(&mut state, DeliveryEvent::Tick, time),
            ["store SUCCESS"]
        );
    }
    assert_eq!(handle(&mut state, DeliveryEvent::Done, time), ["Ack"]);
}

#[test]
fn unstorable_result_becomes_failure() {
    let permanent = || DeliveryEvent::Failed(EffectError::Refused("too large".to_owned()));
    check_sequence(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (permanent(), &["store FAILURE BackendStoreError"]),
            (DeliveryEvent::Done, &["Ack"]),
        ],
    );
}

#[test]
fn unkept_dead_letter_is_requeued() {
    let rejection = Rejection {
        reason: "unregistered",
        detail: String::new(),
        task: None,
    };
    let time = Time::new();
    let mut state = DeliveryState::of_rejected(rejection, OnUnknown::Keep);
    assert_eq!(
        handle(&mut state, DeliveryEvent::Arrived, time),
        ["send dead"]
    );
    let permanent = DeliveryEvent::Failed(EffectError::Refused("no".to_owned()));
    assert_eq!(handle(&mut state, permanent, time), ["Requeue(Tail)"]);
}

#[test]
fn time_limits_signal_then_abort() {
    let mut time = Time::new();
    let mut state = DeliveryState::of_task(ExecutionPolicy {
        soft_limit: Some(Duration::from_secs(3)),
        hard_limit: Some(Duration::from_secs(5)),
        ..late()
    });
    handle(&mut state, DeliveryEvent::Arrived, time);
    handle(&mut state, DeliveryEvent::SlotGranted, time);
    time.pass(Duration::from_secs(3));
    assert_eq!(
        handle(&mut state, DeliveryEvent::Tick, time),
        ["SignalSoftLimit"]
    );
    assert!(handle(&mut state, DeliveryEvent::Tick, time).is_empty());
    time.pass(Duration::from_secs(2));
    assert_eq!(
        handle(&mut state, DeliveryEvent::Tick, time),
        ["FreeSlot", "Abort", "store FAILURE TimeLimitExceeded"]
    );
    assert!(
        handle(&mut state, value(), time).is_empty(),
        "a late outcome is ignored"
    );
}

#[test]
fn events_are_emitted_last() {
    let emitting = ExecutionPolicy {
        emits_events: true,
        ..late()
    };
    check_sequence(
        emitting,
        vec![
            (DeliveryEvent::Arrived, &["Emit(Received)", "Queue"]),
            (DeliveryEvent::SlotGranted, &["Emit(Started)", "Start"]),
            (
                error(TaskError::exception("ValueError", "no")),
                &["FreeSlot", "store FAILURE ValueError"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
        ],
    );
}
