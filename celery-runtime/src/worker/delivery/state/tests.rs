//! The state machine without a driver: single stories, and every story that
//! chance can tell.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::Raw;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::execution::{Loss, TaskError};
use crate::worker::delivery::event::{Links, Outcome};
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

fn plan() -> Plan {
    Plan {
        acks_late: false,
        acks_on_failure: true,
        acks_on_timeout: true,
        tells: false,
        asks: false,
        requeued_when_lost: false,
        stores_result: true,
        stores_errors: false,
        track_started: false,
        links: Links::default(),
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

fn late() -> Plan {
    Plan {
        acks_late: true,
        ..plan()
    }
}

fn value() -> Event {
    Event::Returned(Outcome::Value(Some(Raw::json("1"))))
}

fn error(error: TaskError) -> Event {
    Event::Returned(Outcome::Error { error, random: 0.5 })
}

/// What the machine asks for, in short.
fn tell(life: &mut Life, event: Event, time: Time) -> Vec<String> {
    let mut actions = Vec::new();
    life.handle(event, time.0, &mut actions);
    actions.iter().map(name).collect()
}

fn name(action: &Action) -> String {
    match action {
        Action::Step(Step::Settle(verdict)) => format!("{verdict:?}"),
        Action::Step(Step::Store(report)) => match report {
            Report::Started => "store STARTED".to_owned(),
            Report::Success(_) => "store SUCCESS".to_owned(),
            Report::Failure(mishap) => format!("store FAILURE {}", mishap.exception.exc_type),
            Report::Retry(mishap) => format!("store RETRY {}", mishap.exception.exc_type),
            Report::Revoked(reason) => format!("store REVOKED {reason}"),
        },
        Action::Step(Step::Send(letter)) => match letter {
            Letter::Retry { eta, .. } => format!("send retry {}", eta.is_some()),
            Letter::Success(_) => "send success".to_owned(),
            Letter::Replacement(_) => "send replacement".to_owned(),
            Letter::Dead => "send dead".to_owned(),
        },
        Action::Step(Step::Lead(turn)) => match turn {
            Turn::Succeeded(_) => "lead on success".to_owned(),
            Turn::Failed(_) => "lead on failure".to_owned(),
            Turn::Revoked(_) => "lead on revocation".to_owned(),
            Turn::Joined { .. } => "lead on join".to_owned(),
        },
        Action::Step(Step::Deed(Deed::Call(_))) => "call errback".to_owned(),
        Action::Step(Step::Deed(Deed::Send(_))) => "send deed".to_owned(),
        other => format!("{other:?}"),
    }
}

fn story(plan: Plan, events: Vec<(Event, &[&str])>) {
    let time = Time::new();
    let mut life = Life::of_task(plan);
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
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Ack"]),
            (Event::Done, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_late_task_is_acknowledged_after_its_result() {
    story(
        Plan {
            track_started: true,
            links: Links {
                on_success: true,
                on_failure: true,
                in_chord: false,
            },
            ..late()
        },
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["store STARTED"]),
            (Event::Done, &["Start"]),
            (value(), &["FreeSlot", "send success"]),
            (Event::Done, &["store SUCCESS"]),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_failed_task_stores_tells_and_acknowledges() {
    let links = Links {
        on_success: true,
        on_failure: true,
        in_chord: false,
    };
    story(
        Plan { links, ..late() },
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (
                error(TaskError::exception("ValueError", "no")),
                &["FreeSlot", "store FAILURE ValueError"],
            ),
            (Event::Done, &["lead on failure"]),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn what_a_workflow_asks_for_is_done_before_the_message_is_settled() {
    let links = Links {
        in_chord: true,
        ..Links::default()
    };
    let deed = || Deed::Send(Arc::default());
    story(
        Plan { links, ..late() },
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &["lead on success"]),
            (Event::Led(vec![deed(), deed()]), &["send deed"]),
            (Event::Led(vec![deed()]), &["send deed"]),
            (Event::Done, &["send deed"]),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_task_that_is_replaced_stores_nothing() {
    let replacement = crate::canvas::Canvas::group([]);
    story(
        late(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (
                error(TaskError::replace(replacement)),
                &["FreeSlot", "send replacement"],
            ),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn retries_rejections_and_ignoring() {
    let running = |plan: Plan, end: TaskError, expected: &[&str]| {
        let time = Time::new();
        let mut life = Life::of_task(plan);
        tell(&mut life, Event::Arrived, time);
        tell(&mut life, Event::Slot, time);
        let mut told = tell(&mut life, error(end), time);
        while told.last().is_some_and(|last| last != "Over") {
            told.extend(tell(&mut life, Event::Done, time));
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
    let exhausted = Plan {
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
    let unforgiving = Plan {
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
    Outcome::Lost(Loss {
        message: "Worker exited prematurely".to_owned(),
        began,
    })
}

#[test]
fn a_task_whose_process_is_lost_has_failed_or_runs_again() {
    let failed: &[&str] = &["FreeSlot", "store FAILURE WorkerLostError"];
    let back: &[&str] = &["FreeSlot", "Requeue(Tail)"];
    let forgiving = Plan {
        requeued_when_lost: true,
        ..late()
    };
    let early = Plan {
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
        let mut life = Life::of_task(plan);
        tell(&mut life, Event::Arrived, time);
        while !matches!(life.phase, Phase::Running { .. }) {
            tell(&mut life, Event::Slot, time);
            tell(&mut life, Event::Done, time);
        }
        let told = tell(&mut life, Event::Returned(lost(began)), time);
        assert_eq!(told, expected);
    }
}

#[test]
fn eta_and_expiry_are_looked_at_before_a_slot_is_taken() {
    let time = Time::new();
    let soon = time.0.wall + Duration::from_secs(5);
    let mut parked = Life::of_task(Plan {
        eta: Some(soon),
        ..plan()
    });
    let told = tell(&mut parked, Event::Arrived, time);
    assert_eq!(told, [format!("Park({soon:?})")]);

    let mut expired = Life::of_task(Plan {
        expires: Some(time.0.wall - Duration::from_secs(1)),
        ..plan()
    });
    assert_eq!(
        tell(&mut expired, Event::Arrived, time),
        ["Expired", "store REVOKED expired"]
    );
    assert_eq!(tell(&mut expired, Event::Done, time), ["Ack"]);

    let mut in_line = Life::of_task(Plan {
        expires: Some(soon),
        ..plan()
    });
    let mut later = time;
    later.pass(Duration::from_secs(6));
    assert_eq!(tell(&mut in_line, Event::Arrived, time), ["Queue"]);
    assert_eq!(
        tell(&mut in_line, Event::Slot, later),
        ["FreeSlot", "Expired", "store REVOKED expired"]
    );
}

#[test]
fn a_step_is_repeated_until_it_succeeds() {
    let mut time = Time::new();
    let mut life = Life::of_task(late());
    tell(&mut life, Event::Arrived, time);
    tell(&mut life, Event::Slot, time);
    assert_eq!(
        tell(&mut life, value(), time),
        ["FreeSlot", "store SUCCESS"]
    );
    for _ in 0..50 {
        assert!(tell(&mut life, Event::Failed(Obstacle::Passing), time).is_empty());
        let pause = life.timeout().unwrap() - time.0.instant;
        assert!(pause <= Duration::from_secs(2));
        time.pass(pause);
        assert_eq!(tell(&mut life, Event::Tick, time), ["store SUCCESS"]);
    }
    assert_eq!(tell(&mut life, Event::Done, time), ["Ack"]);
}

#[test]
fn a_result_that_cannot_be_stored_becomes_a_failure() {
    let lasting = || Event::Failed(Obstacle::Lasting("too large".to_owned()));
    story(
        late(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (lasting(), &["store FAILURE BackendStoreError"]),
            (Event::Done, &["Ack"]),
        ],
    );
}

#[test]
fn a_message_that_cannot_be_kept_is_not_acknowledged() {
    let refusal = Refusal {
        reason: "unregistered",
        detail: String::new(),
        task: None,
    };
    let time = Time::new();
    let mut life = Life::refused(refusal, OnUnknown::Keep);
    assert_eq!(tell(&mut life, Event::Arrived, time), ["send dead"]);
    let lasting = Event::Failed(Obstacle::Lasting("no".to_owned()));
    assert_eq!(tell(&mut life, lasting, time), ["Requeue(Tail)"]);
}

#[test]
fn what_the_broker_took_back_is_not_settled() {
    story(
        late(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (Event::Withdrawn, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &[]),
            (Event::Stop(Stop::Warm), &["Over"]),
        ],
    );
    story(
        plan(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Ack"]),
            // It may have gone out, and then nobody else gets the task.
            (Event::Withdrawn, &[]),
            (Event::Failed(Obstacle::Passing), &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &[]),
            (Event::Regained, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

/// All is done but the acknowledgement: without the wait the task would run a
/// second time.
#[test]
fn what_comes_back_late_is_settled_and_not_run_again() {
    let over = |last: Event, expected: &'static [&'static str]| {
        let mut time = Time::new();
        let mut life = Life::of_task(late());
        for event in [
            Event::Arrived,
            Event::Slot,
            Event::Withdrawn,
            value(),
            Event::Done,
        ] {
            tell(&mut life, event, time);
        }
        assert!(life.awaits_return());
        time.0.instant = life.timeout().expect("an end of the wait");
        assert_eq!(tell(&mut life, last, time), expected);
    };
    over(Event::Regained, &["Ack"]);
    over(Event::Tick, &["Over"]);
}

#[test]
fn what_comes_back_is_settled_in_the_end() {
    story(
        late(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (Event::Withdrawn, &[]),
            (Event::Regained, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_settlement_of_the_lost_delivery_does_not_count_for_the_next() {
    let to_the_ack = |then: Vec<(Event, &'static [&'static str])>| {
        let mut events: Vec<(Event, &[&str])> = vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (Event::Done, &["Ack"]),
            (Event::Withdrawn, &[]),
        ];
        events.extend(then);
        story(late(), events);
    };
    for report in [Event::Done, Event::Failed(Obstacle::Passing)] {
        to_the_ack(vec![(report, &[]), (Event::Stop(Stop::Warm), &["Over"])]);
    }
    for report in [Event::Done, Event::Failed(Obstacle::Passing)] {
        to_the_ack(vec![
            (Event::Regained, &[]),
            (report, &["Ack"]),
            (Event::Done, &["Over"]),
        ]);
    }
    // Lost and regained again, all while the first one is on its way.
    to_the_ack(vec![
        (Event::Regained, &[]),
        (Event::Withdrawn, &[]),
        (Event::Regained, &[]),
        (Event::Done, &["Ack"]),
        (Event::Done, &["Over"]),
    ]);
}

#[test]
fn only_late_tasks_that_go_on_await_their_return() {
    let mut early = Life::of_task(plan());
    let mut waiting = Life::of_task(late());
    let mut running = Life::of_task(late());
    let time = Time::new();
    for life in [&mut early, &mut waiting, &mut running] {
        tell(life, Event::Arrived, time);
    }
    tell(&mut early, Event::Slot, time);
    tell(&mut early, Event::Done, time);
    tell(&mut running, Event::Slot, time);
    assert!(!running.awaits_return(), "nothing is lost yet");
    for life in [&mut early, &mut waiting, &mut running] {
        tell(life, Event::Withdrawn, time);
    }
    assert!(!early.awaits_return() && !waiting.awaits_return());
    assert!(running.awaits_return());
    tell(&mut running, Event::Regained, time);
    assert!(!running.awaits_return());
}

#[test]
fn limits() {
    let mut time = Time::new();
    let mut life = Life::of_task(Plan {
        soft_limit: Some(Duration::from_secs(3)),
        hard_limit: Some(Duration::from_secs(5)),
        ..late()
    });
    tell(&mut life, Event::Arrived, time);
    tell(&mut life, Event::Slot, time);
    time.pass(Duration::from_secs(3));
    assert_eq!(tell(&mut life, Event::Tick, time), ["Warn"]);
    assert!(tell(&mut life, Event::Tick, time).is_empty());
    time.pass(Duration::from_secs(2));
    assert_eq!(
        tell(&mut life, Event::Tick, time),
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
                Event::Revoked(Revocation::Unstarted),
                &["store REVOKED revoked"],
            ),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
        ],
    );
    story(
        late(),
        vec![
            (Event::Arrived, &["Queue"]),
            (
                Event::Revoked(Revocation::Terminate(9)),
                &["store REVOKED revoked"],
            ),
            (Event::Done, &["Ack"]),
            (Event::Done, &["Over"]),
            (Event::Slot, &[]),
        ],
    );
}

#[test]
fn a_running_task_is_ended_only_when_it_shall_be() {
    let telling = Plan {
        tells: true,
        ..late()
    };
    story(
        telling,
        vec![
            (Event::Arrived, &["Tell(Received)", "Queue"]),
            (Event::Slot, &["Tell(Started)", "Start"]),
            (Event::Revoked(Revocation::Unstarted), &[]),
            (
                Event::Revoked(Revocation::Terminate(9)),
                &["Abort", "FreeSlot", "store REVOKED terminated"],
            ),
            (Event::Done, &["Ack"]),
            (
                Event::Done,
                &[
                    "Tell(Revoked { signal: Some(9), terminated: true, expired: false })",
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
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Ack"]),
            (Event::Revoked(Revocation::Unstarted), &[]),
            (Event::Done, &["FreeSlot", "store REVOKED revoked"]),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn a_limited_task_waits_here_for_a_moment_and_with_the_broker_for_longer() {
    let mut time = Time::new();
    let mut life = Life::of_task(plan());
    tell(&mut life, Event::Arrived, time);
    let soon = time.0.instant + Duration::from_millis(300);
    assert!(tell(&mut life, Event::Hold(soon), time).is_empty());
    assert!(!life.is_pending() && life.is_reserved());
    time.pass(Duration::from_millis(300));
    assert_eq!(tell(&mut life, Event::Tick, time), ["Queue"]);
    let later = time.0.instant + Duration::from_secs(3600);
    let parked = tell(&mut life, Event::Hold(later), time);
    assert!(parked[0].starts_with("Park("), "{parked:?}");
}

#[test]
fn a_task_waits_for_the_answer_to_its_question() {
    let asking = Plan {
        asks: true,
        ..late()
    };
    story(
        asking.clone(),
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Step(Ask)"]),
            (Event::Answered(Answer::Start), &["Start"]),
        ],
    );
    story(
        asking,
        vec![
            (Event::Arrived, &["Queue"]),
            (Event::Slot, &["Step(Ask)"]),
            (
                Event::Answered(Answer::Succeeded(Raw::NULL)),
                &["FreeSlot", "Ack"],
            ),
            (Event::Done, &["Over"]),
        ],
    );
}

#[test]
fn those_who_watch_are_told_last() {
    let telling = Plan {
        tells: true,
        ..late()
    };
    story(
        telling,
        vec![
            (Event::Arrived, &["Tell(Received)", "Queue"]),
            (Event::Slot, &["Tell(Started)", "Start"]),
            (
                error(TaskError::exception("ValueError", "no")),
                &["FreeSlot", "store FAILURE ValueError"],
            ),
            (Event::Done, &["Ack"]),
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

fn any_life() -> impl Strategy<Value = (Option<Plan>, OnUnknown)> {
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
        let plan = Plan {
            acks_late: flags[0],
            acks_on_failure: flags[1],
            requeued_when_lost: flags[10],
            stores_result: flags[2],
            stores_errors: flags[3],
            track_started: flags[4],
            links: Links {
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
    life: Life,
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
    fn tell(&mut self, event: Event) {
        let done = matches!(event, Event::Done);
        if done && let Some((step, delivery)) = self.step.take() {
            match step.as_str() {
                "Ack" if !self.started && self.early => self.acked = true,
                verdict if is_verdict(verdict) => self.settled.push(delivery),
                store if store.starts_with("store SUCCESS") => self.reported = true,
                _ => {}
            }
        } else if matches!(event, Event::Failed(_) | Event::Answered(_)) {
            self.step = None;
        }
        let mut actions = Vec::new();
        self.life.handle(event, self.time.0, &mut actions);
        for action in actions {
            self.check(&action);
        }
    }

    fn is_asked(&self) -> bool {
        matches!(&self.step, Some((step, _)) if step == "Step(Ask)")
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
            Action::Step(_) => {
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
            Action::Tell(_) | Action::Expired => {}
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
            Some(plan) => Life::of_task(plan),
            None => {
                let refusal = Refusal { reason: "malformed", detail: String::new(), task: None };
                Life::refused(refusal, policy)
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
        observer.tell(Event::Arrived);
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
                observer.tell(Event::Slot);
            }
        }
        Chance::Succeed if observer.is_asked() => {
            observer.tell(Event::Answered(Answer::Start));
        }
        Chance::Succeed if observer.step.is_some() => observer.tell(Event::Done),
        // As the driver: who lines up may be told to come later.
        Chance::Hold(milliseconds) if observer.queued => {
            observer.queued = false;
            let wait = Duration::from_millis(milliseconds.into());
            observer.tell(Event::Hold(observer.time.0.instant + wait));
        }
        Chance::Revoke => observer.tell(Event::Revoked(Revocation::Unstarted)),
        Chance::Terminate => observer.tell(Event::Revoked(Revocation::Terminate(15))),
        Chance::FailPassing if observer.step.is_some() => {
            observer.tell(Event::Failed(Obstacle::Passing));
        }
        // A verdict never fails for good: a broker that is gone is reconnected.
        Chance::FailLasting
            if observer
                .step
                .as_ref()
                .is_some_and(|(step, _)| !is_verdict(step)) =>
        {
            observer.tell(Event::Failed(Obstacle::Lasting("no".to_owned())));
        }
        Chance::Return(kind) if observer.running => observer.tell(Event::Returned(outcome(kind))),
        Chance::Pass(milliseconds) => {
            observer
                .time
                .pass(Duration::from_millis(milliseconds.into()));
            observer.tell(Event::Tick);
        }
        Chance::Warm => observer.tell(Event::Stop(Stop::Warm)),
        Chance::Cold => observer.tell(Event::Stop(Stop::Cold)),
        // A settlement that is on its way is reported on all the same.
        Chance::Withdraw => {
            observer.withdrawn = true;
            let acks_early = observer.early && !observer.started;
            let on_its_way = matches!(&observer.step, Some((step, _)) if step == "Ack");
            observer.doubted |= acks_early && on_its_way;
            observer.tell(Event::Withdrawn);
        }
        Chance::Regain if observer.life.awaits_return() => {
            observer.withdrawn = false;
            observer.delivery += 1;
            observer.tell(Event::Regained);
        }
        _ => {}
    }
}
