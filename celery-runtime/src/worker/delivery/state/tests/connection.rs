//! A lost connection and the redelivery of the message.

use crate::worker::delivery::event::{DeliveryEvent, EffectError, Stop};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{Time, check_sequence, handle, late, policy, value};

#[test]
fn invalidated_delivery_is_not_settled() {
    check_sequence(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (DeliveryEvent::ConnectionLost, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &[]),
            (DeliveryEvent::Stop(Stop::Warm), &["Remove"]),
        ],
    );
    check_sequence(
        policy(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            // The broker may have it, and then no other worker gets the task.
            (DeliveryEvent::ConnectionLost, &[]),
            (DeliveryEvent::Failed(EffectError::Unknown), &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &[]),
            (DeliveryEvent::Redelivered, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

/// Only the acknowledgement is left: without the wait the task would run a second
/// time.
#[test]
fn late_redelivery_is_settled_and_not_run_again() {
    let ends_with = |last: DeliveryEvent, expected: &'static [&'static str]| {
        let mut time = Time::new();
        let mut state = DeliveryState::of_task(late());
        for event in [
            DeliveryEvent::Arrived,
            DeliveryEvent::SlotGranted,
            DeliveryEvent::ConnectionLost,
            value(),
            DeliveryEvent::Done,
        ] {
            handle(&mut state, event, time);
        }
        assert!(state.awaits_redelivery());
        time.0.instant = state.timeout().expect("a timeout");
        assert_eq!(handle(&mut state, last, time), expected);
    };
    ends_with(DeliveryEvent::Redelivered, &["Ack"]);
    ends_with(DeliveryEvent::Tick, &["Remove"]);
}

#[test]
fn redelivery_is_settled_at_end() {
    check_sequence(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (DeliveryEvent::ConnectionLost, &[]),
            (DeliveryEvent::Redelivered, &[]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn stale_settlement_does_not_count_for_redelivery() {
    let up_to_ack = |rest: Vec<(DeliveryEvent, &'static [&'static str])>| {
        let mut events: Vec<(DeliveryEvent, &[&str])> = vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Start"]),
            (value(), &["FreeSlot", "store SUCCESS"]),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::ConnectionLost, &[]),
        ];
        events.extend(rest);
        check_sequence(late(), events);
    };
    for update in [
        DeliveryEvent::Done,
        DeliveryEvent::Failed(EffectError::Unknown),
    ] {
        up_to_ack(vec![
            (update, &[]),
            (DeliveryEvent::Stop(Stop::Warm), &["Remove"]),
        ]);
    }
    for update in [
        DeliveryEvent::Done,
        DeliveryEvent::Failed(EffectError::Unknown),
    ] {
        up_to_ack(vec![
            (DeliveryEvent::Redelivered, &[]),
            (update, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ]);
    }
    // Lost and redelivered again while the first settlement is under way.
    up_to_ack(vec![
        (DeliveryEvent::Redelivered, &[]),
        (DeliveryEvent::ConnectionLost, &[]),
        (DeliveryEvent::Redelivered, &[]),
        (DeliveryEvent::Done, &["Ack"]),
        (DeliveryEvent::Done, &["Remove"]),
    ]);
}

#[test]
fn only_running_late_task_awaits_redelivery() {
    let mut early = DeliveryState::of_task(policy());
    let mut waiting = DeliveryState::of_task(late());
    let mut running = DeliveryState::of_task(late());
    let time = Time::new();
    for state in [&mut early, &mut waiting, &mut running] {
        handle(state, DeliveryEvent::Arrived, time);
    }
    handle(&mut early, DeliveryEvent::SlotGranted, time);
    handle(&mut early, DeliveryEvent::Done, time);
    handle(&mut running, DeliveryEvent::SlotGranted, time);
    assert!(
        !running.awaits_redelivery(),
        "the connection is not lost yet"
    );
    for state in [&mut early, &mut waiting, &mut running] {
        handle(state, DeliveryEvent::ConnectionLost, time);
    }
    assert!(!early.awaits_redelivery() && !waiting.awaits_redelivery());
    assert!(running.awaits_redelivery());
    handle(&mut running, DeliveryEvent::Redelivered, time);
    assert!(!running.awaits_redelivery());
}
