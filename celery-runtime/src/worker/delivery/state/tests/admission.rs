//! What can happen before a task starts: eta, expiry, rate limits, revocations and
//! admission checks.

use std::time::Duration;

use celery_protocol::Raw;

use crate::worker::delivery::event::{Admission, DeliveryEvent, ExecutionPolicy, Revocation};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::delivery::state::tests::{Time, check_sequence, handle, late, policy, value};

#[test]
fn eta_and_expiry_are_checked_before_slot() {
    let time = Time::new();
    let soon = time.0.wall + Duration::from_secs(5);
    let mut parked = DeliveryState::of_task(ExecutionPolicy {
        eta: Some(soon),
        ..policy()
    });
    let actions = handle(&mut parked, DeliveryEvent::Arrived, time);
    assert_eq!(actions, [format!("Defer({soon:?})")]);

    let mut expired = DeliveryState::of_task(ExecutionPolicy {
        expires: Some(time.0.wall - Duration::from_secs(1)),
        ..policy()
    });
    assert_eq!(
        handle(&mut expired, DeliveryEvent::Arrived, time),
        ["RecordExpiry", "store REVOKED expired"]
    );
    assert_eq!(handle(&mut expired, DeliveryEvent::Done, time), ["Ack"]);

    let mut waiting = DeliveryState::of_task(ExecutionPolicy {
        expires: Some(soon),
        ..policy()
    });
    let mut later = time;
    later.pass(Duration::from_secs(6));
    assert_eq!(
        handle(&mut waiting, DeliveryEvent::Arrived, time),
        ["Queue"]
    );
    assert_eq!(
        handle(&mut waiting, DeliveryEvent::SlotGranted, later),
        ["FreeSlot", "RecordExpiry", "store REVOKED expired"]
    );
}

#[test]
fn revoked_task_is_acknowledged_without_start() {
    check_sequence(
        policy(),
        vec![
            (
                DeliveryEvent::Revoked(Revocation::Unstarted),
                &["store REVOKED revoked"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
    check_sequence(
        late(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (
                DeliveryEvent::Revoked(Revocation::Terminate(9)),
                &["store REVOKED revoked"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (DeliveryEvent::Done, &["Remove"]),
            (DeliveryEvent::SlotGranted, &[]),
        ],
    );
}

#[test]
fn running_task_is_aborted_only_by_terminate() {
    let emitting = ExecutionPolicy {
        emits_events: true,
        ..late()
    };
    check_sequence(
        emitting,
        vec![
            (DeliveryEvent::Arrived, &["Emit(Received)", "Queue"]),
            (DeliveryEvent::SlotGranted, &["Emit(Started)", "Start"]),
            (DeliveryEvent::Revoked(Revocation::Unstarted), &[]),
            (
                DeliveryEvent::Revoked(Revocation::Terminate(9)),
                &["FreeSlot", "Abort", "store REVOKED terminated"],
            ),
            (DeliveryEvent::Done, &["Ack"]),
            (
                DeliveryEvent::Done,
                &[
                    "Emit(Revoked { signal: Some(9), terminated: true, expired: false })",
                    "Remove",
                ],
            ),
            (value(), &[]),
        ],
    );
}

#[test]
fn task_revoked_during_ack_does_not_start() {
    check_sequence(
        policy(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Ack"]),
            (DeliveryEvent::Revoked(Revocation::Unstarted), &[]),
            (DeliveryEvent::Done, &["FreeSlot", "store REVOKED revoked"]),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}

#[test]
fn rate_limited_task_waits_briefly_or_is_deferred() {
    let mut time = Time::new();
    let mut state = DeliveryState::of_task(policy());
    handle(&mut state, DeliveryEvent::Arrived, time);
    let soon = time.0.instant + Duration::from_millis(300);
    assert!(handle(&mut state, DeliveryEvent::RateLimited(soon), time).is_empty());
    assert!(!state.is_pending() && state.is_reserved());
    time.pass(Duration::from_millis(300));
    assert_eq!(handle(&mut state, DeliveryEvent::Tick, time), ["Queue"]);
    let later = time.0.instant + Duration::from_secs(3600);
    let parked = handle(&mut state, DeliveryEvent::RateLimited(later), time);
    assert!(parked[0].starts_with("Defer("), "{parked:?}");
}

#[test]
fn task_starts_after_admission_check() {
    let checking = ExecutionPolicy {
        checks_admission: true,
        ..late()
    };
    check_sequence(
        checking.clone(),
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Effect(CheckAdmission)"]),
            (
                DeliveryEvent::AdmissionChecked(Admission::Start),
                &["Start"],
            ),
        ],
    );
    check_sequence(
        checking,
        vec![
            (DeliveryEvent::Arrived, &["Queue"]),
            (DeliveryEvent::SlotGranted, &["Effect(CheckAdmission)"]),
            (
                DeliveryEvent::AdmissionChecked(Admission::Succeeded(Raw::NULL)),
                &["FreeSlot", "Ack"],
            ),
            (DeliveryEvent::Done, &["Remove"]),
        ],
    );
}
