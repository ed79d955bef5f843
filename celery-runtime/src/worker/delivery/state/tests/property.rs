//! A property test: random events in any order.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::Raw;
use proptest::prelude::*;

use crate::config::OnUnknown;
use crate::execution::TaskError;
use crate::worker::delivery::event::{
    Action, Admission, Continuations, DeliveryEvent, EffectError, ExecutionPolicy, Outcome,
    Rejection, Revocation, Stop,
};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{Time, lost, name, policy};

/// A random input. One that does not apply in the current state is ignored.
#[derive(Clone, Copy, Debug)]
enum Input {
    GrantSlot,
    Succeed,
    FailTransient,
    FailPermanent,
    Return(u8),
    Pass(u16),
    Warm,
    Cold,
    LoseConnection,
    Redeliver,
    LimitRate(u16),
    Revoke,
    Terminate,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        8 => Just(Input::GrantSlot),
        8 => Just(Input::Succeed),
        3 => Just(Input::FailTransient),
        1 => Just(Input::FailPermanent),
        6 => (0u8..9).prop_map(Input::Return),
        4 => (0u16..3000).prop_map(Input::Pass),
        1 => Just(Input::Warm),
        1 => Just(Input::Cold),
        1 => Just(Input::LoseConnection),
        2 => Just(Input::Redeliver),
        1 => (0u16..3000).prop_map(Input::LimitRate),
        1 => Just(Input::Revoke),
        1 => Just(Input::Terminate),
    ]
}

fn any_delivery() -> impl Strategy<Value = (Option<ExecutionPolicy>, OnUnknown)> {
    let flags = proptest::array::uniform12(any::<bool>());
    let times = (0u8..3, 0u8..3, 0u64..4, 0u64..4, 0u32..5);
    let on_unknown = prop_oneof![
        Just(OnUnknown::Keep),
        Just(OnUnknown::Reject),
        Just(OnUnknown::Requeue(Duration::from_secs(1))),
    ];
    (flags, times, on_unknown, 0u8..5).prop_map(|(flags, times, on_unknown, kind)| {
        let (eta, expires, soft, hard, retries) = times;
        let start = UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let offset = |n: u8, seconds: i64| -> Option<SystemTime> {
            (n > 0).then(|| match n {
                1 => start - Duration::from_secs(1),
                _ => start + Duration::from_secs(seconds.unsigned_abs()),
            })
        };
        let limit = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        let policy = ExecutionPolicy {
            acks_late: flags[0],
            acks_on_failure: flags[1],
            requeued_when_lost: flags[10],
            stores_result: flags[2],
            stores_errors: flags[3],
            track_started: flags[4],
            continuations: Continuations {
                on_success: flags[5],
                on_failure: flags[6],
                in_chord: flags[11],
            },
            emits_events: flags[7],
            checks_admission: flags[8],
            acks_on_timeout: flags[9],
            eta: offset(eta, 2),
            expires: offset(expires, 1),
            soft_limit: limit(soft),
            hard_limit: limit(hard),
            retries,
            ..policy()
        };
        ((kind > 0).then_some(policy), on_unknown)
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

/// A driver that checks every action against the rules.
struct CheckingDriver {
    state: DeliveryState,
    time: Time,
    early: bool,
    queued: bool,
    slot: bool,
    started: bool,
    running: bool,
    removed: bool,
    invalidated: bool,
    acked: bool,
    /// The connection was lost during the early acknowledgement. The task starts
    /// all the same, because the broker may have the acknowledgement.
    ack_in_doubt: bool,
    /// The number of the current delivery of the message. Each is settled at most
    /// once.
    delivery: u32,
    /// The effect under way, by name, and the delivery that it is for.
    effect: Option<(String, u32)>,
    settled: Vec<u32>,
}

impl CheckingDriver {
    fn handle(&mut self, event: DeliveryEvent) {
        let done = matches!(event, DeliveryEvent::Done);
        if done && let Some((effect, delivery)) = self.effect.take() {
            match effect.as_str() {
                "Ack" if !self.started && self.early => self.acked = true,
                disposition if is_disposition(disposition) => self.settled.push(delivery),
                _ => {}
            }
        } else if matches!(
            event,
            DeliveryEvent::Failed(_) | DeliveryEvent::AdmissionChecked(_)
        ) {
            self.effect = None;
        }
        let mut actions = Vec::new();
        self.state.handle(event, self.time.0, &mut actions);
        for action in actions {
            self.check(&action);
        }
    }

    fn checks_admission(&self) -> bool {
        matches!(&self.effect, Some((effect, _)) if effect == "Effect(CheckAdmission)")
    }

    fn check(&mut self, action: &Action) {
        assert!(!self.removed, "{action:?} after the removal");
        match action {
            Action::Queue => {
                assert!(!self.slot && !self.queued);
                self.queued = true;
            }
            Action::FreeSlot => {
                assert!(self.slot, "freed a slot that it did not have");
                self.slot = false;
                self.running = false;
            }
            Action::Start => {
                assert!(
                    self.slot && !self.started,
                    "started twice or without a slot"
                );
                assert!(
                    !self.early || self.acked || self.ack_in_doubt,
                    "started before its acknowledgement"
                );
                self.started = true;
                self.running = true;
            }
            Action::SignalSoftLimit | Action::Abort => assert!(self.running),
            Action::Effect(_) => {
                assert!(self.effect.is_none(), "two effects at once");
                let effect = name(action);
                assert!(
                    !(self.invalidated && is_disposition(&effect)),
                    "settled an invalidated delivery"
                );
                assert!(
                    !is_disposition(&effect) || !self.settled.contains(&self.delivery),
                    "settled twice"
                );
                self.effect = Some((effect, self.delivery));
            }
            Action::Emit(_) | Action::RecordExpiry => {}
            Action::Remove => {
                assert!(!self.slot, "removed while it held a slot");
                self.removed = true;
            }
        }
    }
}

fn is_disposition(effect: &str) -> bool {
    ["Ack", "Reject", "Requeue", "Defer"]
        .iter()
        .any(|disposition| effect.starts_with(disposition))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// In every order of events, no slot is lost or freed twice, no task starts twice
    /// or before its early acknowledgement, and no delivery is settled twice. Once
    /// failures cease, every delivery is settled and removed.
    #[test]
    fn any_event_order_ends_settled(
        (policy, on_unknown) in any_delivery(),
        inputs in proptest::collection::vec(input(), 0..60),
    ) {
        let early = policy.as_ref().is_some_and(|policy| !policy.acks_late);
        let state = match policy {
            Some(policy) => DeliveryState::of_task(policy),
            None => {
                let rejection = Rejection { reason: "malformed", detail: String::new(), task: None };
                DeliveryState::of_rejected(rejection, on_unknown)
            }
        };
        let mut driver = CheckingDriver {
            state,
            time: Time::new(),
            early,
            queued: false,
            slot: false,
            started: false,
            running: false,
            removed: false,
            invalidated: false,
            acked: false,
            ack_in_doubt: false,
            delivery: 0,
            effect: None,
            settled: Vec::new(),
        };
        driver.handle(DeliveryEvent::Arrived);
        for input in inputs {
            apply(&mut driver, input);
        }
        // Failures cease.
        for _ in 0..20 {
            for input in [Input::GrantSlot, Input::Succeed, Input::Return(0), Input::Pass(3000)] {
                apply(&mut driver, input);
            }
        }
        prop_assert!(driver.removed, "it is never removed: {:?}", driver.state);
        let settled = driver.settled.contains(&driver.delivery);
        let settled = settled || driver.acked || driver.invalidated;
        prop_assert!(settled, "the message was never settled");
    }
}

fn apply(driver: &mut CheckingDriver, input: Input) {
    match input {
        Input::GrantSlot if driver.queued => {
            driver.queued = false;
            // Like the driver: a delivery that left the queue gets no slot.
            if driver.state.is_waiting() {
                driver.slot = true;
                driver.handle(DeliveryEvent::SlotGranted);
            }
        }
        Input::Succeed if driver.checks_admission() => {
            driver.handle(DeliveryEvent::AdmissionChecked(Admission::Start));
        }
        Input::Succeed if driver.effect.is_some() => driver.handle(DeliveryEvent::Done),
        // Like the driver: a delivery that queues may be rate limited.
        Input::LimitRate(milliseconds) if driver.queued => {
            driver.queued = false;
            let wait = Duration::from_millis(milliseconds.into());
            driver.handle(DeliveryEvent::RateLimited(driver.time.0.instant + wait));
        }
        Input::Revoke => driver.handle(DeliveryEvent::Revoked(Revocation::Unstarted)),
        Input::Terminate => driver.handle(DeliveryEvent::Revoked(Revocation::Terminate(15))),
        Input::FailTransient if driver.effect.is_some() => {
            driver.handle(DeliveryEvent::Failed(EffectError::Unknown));
        }
        // A settlement never fails permanently: the worker reconnects to the broker.
        Input::FailPermanent
            if driver
                .effect
                .as_ref()
                .is_some_and(|(effect, _)| !is_disposition(effect)) =>
        {
            driver.handle(DeliveryEvent::Failed(EffectError::Refused("no".to_owned())));
        }
        Input::Return(kind) if driver.running => {
            driver.handle(DeliveryEvent::Returned(outcome(kind)))
        }
        Input::Pass(milliseconds) => {
            driver.time.pass(Duration::from_millis(milliseconds.into()));
            driver.handle(DeliveryEvent::Tick);
        }
        Input::Warm => driver.handle(DeliveryEvent::Stop(Stop::Warm)),
        Input::Cold => driver.handle(DeliveryEvent::Stop(Stop::Cold)),
        // A settlement under way is reported all the same.
        Input::LoseConnection => {
            driver.invalidated = true;
            let acks_early = driver.early && !driver.started;
            let acknowledging = matches!(&driver.effect, Some((effect, _)) if effect == "Ack");
            driver.ack_in_doubt |= acks_early && acknowledging;
            driver.handle(DeliveryEvent::ConnectionLost);
        }
        Input::Redeliver if driver.state.awaits_redelivery() => {
            driver.invalidated = false;
            driver.delivery += 1;
            driver.handle(DeliveryEvent::Redelivered);
        }
        _ => {}
    }
}
