//! Times in the forms of Celery.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::time;
use proptest::prelude::*;

fn at(seconds: u64, micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[test]
fn every_iso_8601_form_is_parsed() {
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
fn invalid_time_error_names_the_text() {
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
fn python_datetime_range_is_supported() {
    for text in [
        "0001-01-01T00:00:00+00:00",
        "9999-12-31T23:59:59.999999+00:00",
    ] {
        assert_eq!(time::format(time::parse(text).unwrap()), text);
    }
}

#[test]
fn time_is_formatted_as_in_python() {
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
    fn formatted_time_is_parsed_back(seconds in 0..250_000_000_000u64, micros in 0..1_000_000u64) {
        let time_point = at(seconds, micros);
        prop_assert_eq!(time::parse(&time::format(time_point)), Ok(time_point));
    }
}
