//! Times as Celery writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::time;
use proptest::prelude::*;

fn at(seconds: u64, micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[test]
fn every_form_of_the_field_is_read() {
    let expected = at(1_893_553_445, 678_901);
    for text in [
        "2030-01-02T03:04:05.678901+00:00",
        "2030-01-02T03:04:05.678901Z",
        "2030-01-02T05:04:05.678901+02:00",
        "2030-01-02T08:34:05.678901+05:30",
        "2030-01-01T22:04:05.678901-05:00",
        "2030-01-02T03:04:05.678901",
        "2030-01-02 03:04:05.678901",
        "2030-01-02 03:04:05.678901+00:00",
    ] {
        assert_eq!(time::parse(text), Ok(expected), "{text}");
    }
    assert_eq!(time::parse("2030-01-02"), Ok(at(1_893_542_400, 0)));
    assert_eq!(time::parse("2030-01-02T03:04:05"), Ok(at(1_893_553_445, 0)));
}

#[test]
fn bad_times_are_an_error_that_names_them() {
    for text in [
        "",
        "2030-01-02T03:04:05[Europe/Berlin]",
        "tomorrow",
        "2030-13-01T00:00:00",
        "1893553445",
        "03:04:05",
        "2030-01-02T25:00:00Z",
    ] {
        let error = time::parse(text).unwrap_err();
        assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
    }
}

#[test]
fn the_first_and_last_time_of_python_are_kept() {
    for text in [
        "0001-01-01T00:00:00+00:00",
        "9999-12-31T23:59:59.999999+00:00",
    ] {
        assert_eq!(time::format(time::parse(text).unwrap()), text);
    }
}

#[test]
fn written_as_python_writes_it() {
    assert_eq!(
        time::format(at(1_893_553_445, 678_901)),
        "2030-01-02T03:04:05.678901+00:00"
    );
    assert_eq!(
        time::format(at(1_893_553_445, 0)),
        "2030-01-02T03:04:05+00:00"
    );
    assert_eq!(time::format(at(0, 1)), "1970-01-01T00:00:00.000001+00:00");
    let old = UNIX_EPOCH - Duration::from_micros(1);
    assert_eq!(time::format(old), "1969-12-31T23:59:59.999999+00:00");
    let far = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
    assert_eq!(time::format(far), "9999-12-31T23:59:59.999999+00:00");
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(seconds in 0..250_000_000_000u64, micros in 0..1_000_000u64) {
        let moment = at(seconds, micros);
        prop_assert_eq!(time::parse(&time::format(moment)), Ok(moment));
    }
}
