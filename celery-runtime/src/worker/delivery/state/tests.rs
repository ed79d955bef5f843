//! The state machine without a driver: single stories, and every story that
//! chance can tell.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::Raw;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::execution::{ProcessLost, TaskError};
use crate::worker::delivery::event::{Continuations, Outcome};
use crate::worker::delivery::state::*;

/// A clock that only this test moves.
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

fn plan() -> ExecutionPolicy {
    ExecutionPolicy {
        acks_late: false,
        acks_on_failure: true,
        acks_on_timeout: true,
        tells: false,
        asks: false,
        requeued_when_lost: false,
        stores_result: true,
        stores_errors: false,
        track_started: false,
        links: Continuations::default(),
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
        ..plan()
    }
}

fn value() -> DeliveryEvent {
    DeliveryEvent::Returned(Outcome::Value(Some(Raw::json("1"))))
}

fn error(error: TaskError) -> DeliveryEvent {
    DeliveryEvent::Returned(Outcome::Error { error, random: 0.5 })
}

/// What the machine asks for, in short.
fn tell(life: &mut DeliveryState, event: DeliveryEvent, time: Time) -> Vec<String> {
    let mut actions = Vec::new();
    life.handle(event, time.0, &mut actions);
    actions.iter().map(name).collect()
}

fn name(action: &Action) -> String {
    match action {
        Action::Effect(Effect::Settle(verdict)) => format!("{verdict:?}"),
        Action::Effect(Effect::Store(report)) => match report {
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
        Action::Effect(Effect::Send(letter)) => match letter {
            FollowUp::Retry { eta, .. } => format!("send retry {}", eta.is_some()),
            FollowUp::Success(_) => "send success".to_owned(),
            FollowUp::Replacement(_) => "send replacement".to_owned(),
            FollowUp::Dead => "send dead".to_owned(),
        },
        Action::Effect(Effect::Continue(turn)) => match turn {
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

fn story(plan: ExecutionPolicy, events: Vec<(DeliveryEvent, &[&str])>) {
    let time = Time::new();
    let mut life = DeliveryState::of_task(plan);
    for (index, (event, expected)) in events.into_iter().enumerate() {
        let shown = format!("{event:?}");
        assert_eq!(
            tell(&mut life, event, time),
            expected,
            "event {index}: {shown}"
        );
    }
}

#[test]
fn an_early_task_is_acknowledged_before_it_starts() {
    story(
        plan(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            (DeliveryEvent::Done, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_late_task_is_acknowledged_after_its_result() {
    story(
        ExecutionPolicy {
            track_started: true,
            links: Continuations {
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
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_failed_task_stores_tells_and_acknowledges() {
    let links = Continuations {
        on_success: true,
        on_failure: true,
        in_chord: false,
    };
    story(
        ExecutionPolicy { links, ..late() },
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (
                error(TaskError::exception("ValueError", "no")),
                &["FreeSlot", "store FAILURE ValueError"],
            ),
            (DeliveryEvent::Done, &["continue on failure"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn what_a_workflow_asks_for_is_done_before_the_message_is_settled() {
    let links = Continuations {
        in_chord: true,
        ..Continuations::default()
    };
    let deed = || WorkflowEffect::Send(Arc::default());
    story(
        ExecutionPolicy { links, ..late() },
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["continue on success"]),
            (
                DeliveryEvent::FollowUps(vec![deed(), deed()]),
                &["send workflow"],
            ),
            (DeliveryEvent::FollowUps(vec![deed()]), &["send workflow"]),
            (DeliveryEvent::Done, &["send workflow"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_task_that_is_replaced_stores_nothing() {
    let replacement = crate::canvas::Canvas::group([]);
    story(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (
                error(TaskError::replace(replacement)),
                &["FreeSlot", "send replacement"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn retries_rejections_and_ignoring() {
    let running = |plan: ExecutionPolicy, end: TaskError, expected: &[&str]| {
        let time = Time::new();
        let mut life = DeliveryState::of_task(plan);
        tell(&mut life, DeliveryEvent::Arrived, time);
        tell(&mut life, DeliveryEvent::SlotGranted, time);
        let mut told = tell(&mut life, error(end), time);
        while told.last().is_some_and(|last| last != "Over") {
            told.extend(tell(&mut life, DeliveryEvent::Done, time));
        }
        assert_eq!(told[1..], *expected);
    };
    running(
        late(),
        TaskError::retry(),
        &["store RETRY Retry", "send retry true", "Ack", "Over"],
    );
    let at_once = TaskError::retry().after(Duration::ZERO);
    running(
        late(),
        at_once,
        &["store RETRY Retry", "send retry false", "Ack", "Over"],
    );
    let exhausted = ExecutionPolicy {
        retries: 3,
        ..late()
    };
    running(
        exhausted,
        TaskError::retry(),
        &["store FAILURE MaxRetriesExceededError", "Ack", "Over"],
    );
    running(late(), TaskError::ignore(), &["Ack", "Over"]);
    let reject = |requeue| TaskError::reject("no", requeue);
    running(
        late(),
        reject(crate::Requeue::Yes),
        &["Requeue(Tail)", "Over"],
    );
    running(
        late(),
        reject(crate::Requeue::No),
        &["store FAILURE Reject", "Reject", "Over"],
    );
    let unforgiving = ExecutionPolicy {
        acks_on_failure: false,
        ..late()
    };
    running(
        unforgiving,
        TaskError::exception("ValueError", "no"),
        &["store FAILURE ValueError", "Reject", "Over"],
    );
}

fn lost(began: bool) -> Outcome {
    Outcome::Lost(ProcessLost {
        message: "Worker exited prematurely".to_owned(),
        began,
    })
}

#[test]
fn a_task_whose_process_is_lost_has_failed_or_runs_again() {
    let failed: &[&str] = &["FreeSlot", "store FAILURE WorkerLostError"];
    let back: &[&str] = &["FreeSlot", "Requeue(Tail)"];
    let forgiving = ExecutionPolicy {
        requeued_when_lost: true,
        ..late()
    };
    let early = ExecutionPolicy {
        acks_late: false,
        ..forgiving.clone()
    };
    for (plan, began, expected) in [
        (late(), true, failed),
        (forgiving.clone(), true, back),
        (forgiving, false, back),
        // It did not even begin.
        (late(), false, back),
        // Its message is gone.
        (early.clone(), true, failed),
        (early, false, failed),
    ] {
        let time = Time::new();
        let mut life = DeliveryState::of_task(plan);
        tell(&mut life, DeliveryEvent::Arrived, time);
        while !matches!(life.phase, Phase::Running { .. }) {
            tell(&mut life, DeliveryEvent::SlotGranted, time);
            tell(&mut life, DeliveryEvent::Done, time);
        }
        let told = tell(&mut life, DeliveryEvent::Returned(lost(began)), time);
        assert_eq!(told, expected);
    }
}

#[test]
fn eta_and_expiry_are_looked_at_before_a_slot_is_taken() {
    let time = Time::new();
    let soon = time.0.wall + Duration::from_secs(5);
    let mut parked = DeliveryState::of_task(ExecutionPolicy {
        eta: Some(soon),
        ..plan()
    });
    let told = tell(&mut parked, DeliveryEvent::Arrived, time);
    assert_eq!(told, [format!("Park({soon:?})")]);

    let mut expired = DeliveryState::of_task(ExecutionPolicy {
        expires: Some(time.0.wall - Duration::from_secs(1)),
        ..plan()
    });
    assert_eq!(
        tell(&mut expired, DeliveryEvent::Arrived, time),
        ["Expired", "store REVOKED expired"]
    );
    assert_eq!(tell(&mut expired, DeliveryEvent::Done, time), ["Ack"]);

    let mut in_line = DeliveryState::of_task(ExecutionPolicy {
        expires: Some(soon),
        ..plan()
    });
    let mut later = time;
    later.pass(Duration::from_secs(6));
    assert_eq!(tell(&mut in_line, DeliveryEvent::Arrived, time), ["Queue"]);
    assert_eq!(
        tell(&mut in_line, DeliveryEvent::SlotGranted, later),
        ["FreeSlot", "Expired", "store REVOKED expired"]
    );
}

#[test]
fn a_step_is_repeated_until_it_succeeds() {
    let mut time = Time::new();
    let mut life = DeliveryState::of_task(late());
    tell(&mut life, DeliveryEvent::Arrived, time);
    tell(&mut life, DeliveryEvent::SlotGranted, time);
    assert_eq!(
        tell(&mut life, value(), time),
        ["FreeSlot", "store SUCCESS"]
    );
    for _ in 0..50 {
        assert!(tell(&mut life, DeliveryEvent::Failed(EffectError::Unknown), time).is_empty());
        let pause = life.timeout().unwrap() - time.0.instant;
        assert!(pause <= Duration::from_secs(2));
        time.pass(pause);
        assert_eq!(
            tell(&mut life, DeliveryEvent::Tick, time),
            ["store SUCCESS"]
        );
    }
    assert_eq!(tell(&mut life, DeliveryEvent::Done, time), ["Ack"]);
}

#[test]
fn a_result_that_cannot_be_stored_becomes_a_failure() {
    let lasting = || DeliveryEvent::Failed(EffectError::Refused("too large".to_owned()));
    story(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (lasting(), &["store FAILURE BackendStoreError"]),
            (DeliveryEvent::Done, &["Ack"]),
        ],
    );
}

#[test]
fn a_message_that_cannot_be_kept_is_not_acknowledged() {
    let refusal = Rejection {
        reason: "unregistered",
        detail: String::new(),
        task: None,
    };
    let time = Time::new();
    let mut life = DeliveryState::refused(refusal, OnUnknown::Keep);
    assert_eq!(tell(&mut life, DeliveryEvent::Arrived, time), ["send dead"]);
    let lasting = DeliveryEvent::Failed(EffectError::Refused("no".to_owned()));
    assert_eq!(tell(&mut life, lasting, time), ["Requeue(Tail)"]);
}

#[test]
fn what_the_broker_took_back_is_not_settled() {
    story(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (DeliveryEvent::ConnectionLost, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &[]),
            (DeliveryEvent::Stop(Stop::Warm), &["Over"]),
        ],
    );
    story(
        plan(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            // It may have gone out, and then nobody else gets the task.
            (DeliveryEvent::ConnectionLost, &[]),
            (DeliveryEvent::Failed(EffectError::Unknown), &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &[]),
            (DeliveryEvent::Redelivered, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

/// All is done but the acknowledgement: without the wait the task would run a
/// second time.
#[test]
fn what_comes_back_late_is_settled_and_not_run_again() {
    let over = |last: DeliveryEvent, expected: &'static [&'static str]| {
        let mut time = Time::new();
        let mut life = DeliveryState::of_task(late());
        for event in [
            DeliveryEvent::Arrived,
            DeliveryEvent::SlotGranted,
            DeliveryEvent::ConnectionLost,
            value(),
            DeliveryEvent::Done,
        ] {
            tell(&mut life, event, time);
        }
        assert!(life.awaits_return());
        time.0.instant = life.timeout().expect("an end of the wait");
        assert_eq!(tell(&mut life, last, time), expected);
    };
    over(DeliveryEvent::Redelivered, &["Ack"]);
    over(DeliveryEvent::Tick, &["Over"]);
}

#[test]
fn what_comes_back_is_settled_in_the_end() {
    story(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (DeliveryEvent::ConnectionLost, &[]),
            (DeliveryEvent::Redelivered, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_settlement_of_the_lost_delivery_does_not_count_for_the_next() {
    let to_the_ack = |then: Vec<(DeliveryEvent, &'static [&'static str])>| {
        let mut events: Vec<(DeliveryEvent, &[&str])> = vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::ConnectionLost, &[]),
        ];
        events.extend(then);
        story(late(), events);
    };
    for report in [
        DeliveryEvent::Done,
        DeliveryEvent::Failed(EffectError::Unknown),
    ] {
        to_the_ack(vec![
            (report, &[]),
            (DeliveryEvent::Stop(Stop::Warm), &["Over"]),
        ]);
    }
    for report in [
        DeliveryEvent::Done,
        DeliveryEvent::Failed(EffectError::Unknown),
    ] {
        to_the_ack(vec![
            (DeliveryEvent::Redelivered, &[]),
            (report, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ]);
    }
    // Lost and regained again, all while the first one is on its way.
    to_the_ack(vec![
        (DeliveryEvent::Redelivered, &[]),
        (DeliveryEvent::ConnectionLost, &[]),
        (DeliveryEvent::Redelivered, &[]),
        (DeliveryEvent::Done, &["Ack"]),
        (DeliveryEvent::Done, &["Over"]),
    ]);
}

#[test]
fn only_late_tasks_that_go_on_await_their_return() {
    let mut early = DeliveryState::of_task(plan());
    let mut waiting = DeliveryState::of_task(late());
    let mut running = DeliveryState::of_task(late());
    let time = Time::new();
    for life in [&mut early, &mut waiting, &mut running] {
        tell(life, DeliveryEvent::Arrived, time);
    }
    tell(&mut early, DeliveryEvent::SlotGranted, time);
    tell(&mut early, DeliveryEvent::Done, time);
    tell(&mut running, DeliveryEvent::SlotGranted, time);
    assert!(!running.awaits_return(), "nothing is lost yet");
    for life in [&mut early, &mut waiting, &mut running] {
        tell(life, DeliveryEvent::ConnectionLost, time);
    }
    assert!(!early.awaits_return() && !waiting.awaits_return());
    assert!(running.awaits_return());
    tell(&mut running, DeliveryEvent::Redelivered, time);
    assert!(!running.awaits_return());
}

#[test]
fn limits() {
    let mut time = Time::new();
    let mut life = DeliveryState::of_task(ExecutionPolicy {
        soft_limit: Some(Duration::from_secs(3)),
        hard_limit: Some(Duration::from_secs(5)),
        ..late()
    });
    tell(&mut life, DeliveryEvent::Arrived, time);
    tell(&mut life, DeliveryEvent::SlotGranted, time);
    time.pass(Duration::from_secs(3));
    assert_eq!(tell(&mut life, DeliveryEvent::Tick, time), ["Warn"]);
    assert!(tell(&mut life, DeliveryEvent::Tick, time).is_empty());
    time.pass(Duration::from_secs(2));
    assert_eq!(
        tell(&mut life, DeliveryEvent::Tick, time),
        ["Abort", "FreeSlot", "store FAILURE TimeLimitExceeded"]
    );
    assert!(
        tell(&mut life, value(), time).is_empty(),
        "what comes too late is ignored"
    );
}

#[test]
fn a_revoked_task_is_acknowledged_without_running() {
    story(
        plan(),
        vec![
            (
                DeliveryEvent::Revoked(Revocation::Unstarted),
                &["store REVOKED revoked"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
    story(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (
                DeliveryEvent::Revoked(Revocation::Terminate(9)),
                &["store REVOKED revoked"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Over"]),
            (DeliveryEvent::SlotGranted, &[]),
        ],
    );
}

#[test]
fn a_running_task_is_ended_only_when_it_shall_be() {
    let telling = ExecutionPolicy {
        tells: true,
        ..late()
    };
    story(
        telling,
        vec![
            (DeliveryEvent::Arrived, &["Emit(Received)", "Queue"]),
            (DeliveryEvent::SlotGranted, &["Emit(Started)", "Start"]),
            (DeliveryEvent::Revoked(Revocation::Unstarted), &[]),
            (
                DeliveryEvent::Revoked(Revocation::Terminate(9)),
                &["Abort", "FreeSlot", "store REVOKED terminated"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (
                DeliveryEvent::Done,
                &[
                    "Emit(Revoked { signal: Some(9), terminated: true, expired: false })",
                    "Over",
                ],
            ),
            (value(), &[]),
        ],
    );
}

#[test]
fn a_task_revoked_while_it_is_acknowledged_does_not_start() {
    story(
        plan(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            (DeliveryEvent::Revoked(Revocation::Unstarted), &[]),
            (DeliveryEvent::Done, &["FreeSlot", "store REVOKED revoked"]),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_limited_task_waits_here_for_a_moment_and_with_the_broker_for_longer() {
    let mut time = Time::new();
    let mut life = DeliveryState::of_task(plan());
    tell(&mut life, DeliveryEvent::Arrived, time);
    let soon = time.0.instant + Duration::from_millis(300);
    assert!(tell(&mut life, DeliveryEvent::RateLimited(soon), time).is_empty());
    assert!(!life.is_pending() && life.is_reserved());
    time.pass(Duration::from_millis(300));
    assert_eq!(tell(&mut life, DeliveryEvent::Tick, time), ["Queue"]);
    let later = time.0.instant + Duration::from_secs(3600);
    let parked = tell(&mut life, DeliveryEvent::RateLimited(later), time);
    assert!(parked[0].starts_with("Park("), "{parked:?}");
}

#[test]
fn a_task_waits_for_the_answer_to_its_question() {
    let asking = ExecutionPolicy {
        asks: true,
        ..late()
    };
    story(
        asking.clone(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Effect(CheckAdmission)"]),
            (
                DeliveryEvent::AdmissionChecked(Admission::Start),
                &["Start"],
            ),
        ],
    );
    story(
        asking,
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Effect(CheckAdmission)"]),
            (
                DeliveryEvent::AdmissionChecked(Admission::Succeeded(Raw::NULL)),
                &["FreeSlot", "Ack"],
            ),
            (DeliveryEvent::Done, &["Over"]),
        ],
    );
}

#[test]
fn those_who_watch_are_told_last() {
    let telling = ExecutionPolicy {
        tells: true,
        ..late()
    };
    story(
        telling,
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

/// What chance does next.
#[derive(Clone, Copy, Debug)]
enum Chance {
    Give,
    Succeed,
    FailPassing,
    FailLasting,
    Return(u8),
    Pass(u16),
    Warm,
    Cold,
    Withdraw,
    Regain,
    Hold(u16),
    Revoke,
    Terminate,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        8 => Just(Chance::Give),
        8 => Just(Chance::Succeed),
        3 => Just(Chance::FailPassing),
        1 => Just(Chance::FailLasting),
        6 => (0u8..9).prop_map(Chance::Return),
        4 => (0u16..3000).prop_map(Chance::Pass),
        1 => Just(Chance::Warm),
        1 => Just(Chance::Cold),
        1 => Just(Chance::Withdraw),
        2 => Just(Chance::Regain),
        1 => (0u16..3000).prop_map(Chance::Hold),
        1 => Just(Chance::Revoke),
        1 => Just(Chance::Terminate),
    ]
}

fn any_life() -> impl Strategy<Value = (Option<ExecutionPolicy>, OnUnknown)> {
    let flags = proptest::array::uniform12(any::<bool>());
    let times = (0u8..3, 0u8..3, 0u64..4, 0u64..4, 0u32..5);
    let policy = prop_oneof![
        Just(OnUnknown::Keep),
        Just(OnUnknown::Reject),
        Just(OnUnknown::Requeue(Duration::from_secs(1))),
    ];
    (flags, times, policy, 0u8..5).prop_map(|(flags, times, policy, kind)| {
        let (eta, expires, soft, hard, retries) = times;
        let start = UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let offset = |n: u8, seconds: i64| -> Option<SystemTime> {
            (n > 0).then(|| match n {
                1 => start - Duration::from_secs(1),
                _ => start + Duration::from_secs(seconds.unsigned_abs()),
            })
        };
        let limit = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        let plan = ExecutionPolicy {
            acks_late: flags[0],
            acks_on_failure: flags[1],
            requeued_when_lost: flags[10],
            stores_result: flags[2],
            stores_errors: flags[3],
            track_started: flags[4],
            links: Continuations {
                on_success: flags[5],
                on_failure: flags[6],
                in_chord: flags[11],
            },
            tells: flags[7],
            asks: flags[8],
            acks_on_timeout: flags[9],
            eta: offset(eta, 2),
            expires: offset(expires, 1),
            soft_limit: limit(soft),
            hard_limit: limit(hard),
            retries,
            ..plan()
        };
        ((kind > 0).then_some(plan), policy)
    })
}

fn outcome(kind: u8) -> Outcome {
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

/// A driver that believes nothing: it checks every action against the rules.
struct Observer {
    life: DeliveryState,
    time: Time,
    early: bool,
    queued: bool,
    slot: bool,
    started: bool,
    running: bool,
    over: bool,
    withdrawn: bool,
    acked: bool,
    /// The connection went while the early acknowledgement was on its way: the
    /// task starts all the same, for nobody else may get it.
    doubted: bool,
    /// Which delivery of the message it is; each is settled at most once.
    delivery: u32,
    /// Something is on its way for this delivery; its report is awaited.
    step: Option<(String, u32)>,
    settled: Vec<u32>,
    reported: bool,
}

impl Observer {
    fn tell(&mut self, event: DeliveryEvent) {
        let done = matches!(event, DeliveryEvent::Done);
        if done && let Some((step, delivery)) = self.step.take() {
            match step.as_str() {
                "Ack" if !self.started && self.early => self.acked = true,
                verdict if is_verdict(verdict) => self.settled.push(delivery),
                store if store.starts_with("store SUCCESS") => self.reported = true,
                _ => {}
            }
        } else if matches!(
            event,
            DeliveryEvent::Failed(_) | DeliveryEvent::AdmissionChecked(_)
        ) {
            self.step = None;
        }
        let mut actions = Vec::new();
        self.life.handle(event, self.time.0, &mut actions);
        for action in actions {
            self.check(&action);
        }
    }

    fn is_asked(&self) -> bool {
        matches!(&self.step, Some((step, _)) if step == "Effect(CheckAdmission)")
    }

    fn check(&mut self, action: &Action) {
        assert!(!self.over, "{action:?} after the end");
        match action {
            Action::Queue => {
                assert!(!self.slot && !self.queued);
                self.queued = true;
            }
            Action::FreeSlot => {
                assert!(self.slot, "a slot was freed that it did not have");
                self.slot = false;
                self.running = false;
            }
            Action::Start => {
                assert!(
                    self.slot && !self.started,
                    "started twice or without a slot"
                );
                assert!(
                    !self.early || self.acked || self.doubted,
                    "started before its acknowledgement"
                );
                self.started = true;
                self.running = true;
            }
            Action::Warn | Action::Abort => assert!(self.running),
            Action::Effect(_) => {
                assert!(self.step.is_none(), "two steps at once");
                let step = name(action);
                assert!(
                    !(self.withdrawn && is_verdict(&step)),
                    "settled what was taken back"
                );
                assert!(
                    !is_verdict(&step) || !self.settled.contains(&self.delivery),
                    "settled twice"
                );
                self.step = Some((step, self.delivery));
            }
            Action::Emit(_) | Action::Expired => {}
            Action::Over => {
                assert!(!self.slot, "ended with a slot in hand");
                self.over = true;
            }
        }
    }
}

fn is_verdict(step: &str) -> bool {
    ["Ack", "Reject", "Requeue", "Park"]
        .iter()
        .any(|verdict| step.starts_with(verdict))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: no slot is lost or given twice, no
    /// task starts unacknowledged or twice, nothing is settled twice; and once
    /// faults cease, every delivery comes to its end.
    #[test]
    fn every_story_ends_well(
        (plan, policy) in any_life(),
        chances in proptest::collection::vec(chance(), 0..60),
    ) {
        let early = plan.as_ref().is_some_and(|plan| !plan.acks_late);
        let life = match plan {
            Some(plan) => DeliveryState::of_task(plan),
            None => {
                let refusal = Rejection { reason: "malformed", detail: String::new(), task: None };
                DeliveryState::refused(refusal, policy)
            }
        };
        let mut observer = Observer {
            life,
            time: Time::new(),
            early,
            queued: false,
            slot: false,
            started: false,
            running: false,
            over: false,
            withdrawn: false,
            acked: false,
            doubted: false,
            delivery: 0,
            step: None,
            settled: Vec::new(),
            reported: false,
        };
        observer.tell(DeliveryEvent::Arrived);
        for chance in chances {
            play(&mut observer, chance);
        }
        // Faults cease.
        for _ in 0..20 {
            for chance in [Chance::Give, Chance::Succeed, Chance::Return(0), Chance::Pass(3000)] {
                play(&mut observer, chance);
            }
        }
        prop_assert!(observer.over, "it never ends: {:?}", observer.life);
        let settled = observer.settled.contains(&observer.delivery);
        let settled = settled || observer.acked || observer.withdrawn;
        prop_assert!(settled, "the broker was never told");
    }
}

fn play(observer: &mut Observer, chance: Chance) {
    match chance {
        Chance::Give if observer.queued => {
            observer.queued = false;
            // As the driver: who left the line gets no slot.
            if observer.life.is_waiting() {
                observer.slot = true;
                observer.tell(DeliveryEvent::SlotGranted);
            }
        }
        Chance::Succeed if observer.is_asked() => {
            observer.tell(DeliveryEvent::AdmissionChecked(Admission::Start));
        }
        Chance::Succeed if observer.step.is_some() => observer.tell(DeliveryEvent::Done),
        // As the driver: who lines up may be told to come later.
        Chance::Hold(milliseconds) if observer.queued => {
            observer.queued = false;
            let wait = Duration::from_millis(milliseconds.into());
            observer.tell(DeliveryEvent::RateLimited(observer.time.0.instant + wait));
        }
        Chance::Revoke => observer.tell(DeliveryEvent::Revoked(Revocation::Unstarted)),
        Chance::Terminate => observer.tell(DeliveryEvent::Revoked(Revocation::Terminate(15))),
        Chance::FailPassing if observer.step.is_some() => {
            observer.tell(DeliveryEvent::Failed(EffectError::Unknown));
        }
        // A verdict never fails for good: a broker that is gone is reconnected.
        Chance::FailLasting
            if observer
                .step
                .as_ref()
                .is_some_and(|(step, _)| !is_verdict(step)) =>
        {
            observer.tell(DeliveryEvent::Failed(EffectError::Refused("no".to_owned())));
        }
        Chance::Return(kind) if observer.running => {
            observer.tell(DeliveryEvent::Returned(outcome(kind)))
        }
        Chance::Pass(milliseconds) => {
            observer
                .time
                .pass(Duration::from_millis(milliseconds.into()));
            observer.tell(DeliveryEvent::Tick);
        }
        Chance::Warm => observer.tell(DeliveryEvent::Stop(Stop::Warm)),
        Chance::Cold => observer.tell(DeliveryEvent::Stop(Stop::Cold)),
        // A settlement that is on its way is reported on all the same.
        Chance::Withdraw => {
            observer.withdrawn = true;
            let acks_early = observer.early && !observer.started;
            let on_its_way = matches!(&observer.step, Some((step, _)) if step == "Ack");
            observer.doubted |= acks_early && on_its_way;
            observer.tell(DeliveryEvent::ConnectionLost);
        }
        Chance::Regain if observer.life.awaits_return() => {
            observer.withdrawn = false;
            observer.delivery += 1;
            observer.tell(DeliveryEvent::Redelivered);
        }
        _ => {}
    }
}
