//! Conversion of times from and to ISO 8601, as Celery writes them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::SignedDuration;
use jiff::civil::{DateTime, Time};
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;

use crate::error::DecodeError;

/// Parses an ISO 8601 time, such as the headers `eta` and `expires`.
///
/// An offset or `Z` is applied. A time without offset is UTC, as in Celery.
/// Date and time are separated by `T` or a space; a date without time means
/// midnight.
///
/// ```
/// use celery_protocol::time;
///
/// let aware = time::parse("2030-01-02T05:04:05.678901+02:00")?;
/// let naive = time::parse("2030-01-02 03:04:05.678901")?;
/// assert_eq!(aware, naive);
/// assert_eq!(time::format(aware), "2030-01-02T03:04:05.678901+00:00");
/// # Ok::<(), celery_protocol::DecodeError>(())
/// ```
///
/// # Errors
///
/// Fails if the text is not such a time.
pub fn parse(text: &str) -> Result<SystemTime, DecodeError> {
    let invalid = |reason: &dyn fmt::Display| {
        DecodeError::new(format!("{text:?} is not an ISO 8601 time: {reason}"))
    };
    let pieces = Pieces::parse(text).map_err(|error| invalid(&error))?;
    if pieces.time_zone_annotation().is_some() {
        return Err(invalid(&"a time zone name is not supported, use an offset"));
    }
    let local = pieces
        .date()
        .to_datetime(pieces.time().unwrap_or(Time::midnight()));
    let offset = pieces.to_numeric_offset().unwrap_or(Offset::UTC);
    let since_epoch =
        local.duration_since(EPOCH) - SignedDuration::from_secs(offset.seconds().into());
    let distance = since_epoch.unsigned_abs();
    let time = if since_epoch.is_negative() {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.ok_or_else(|| invalid(&"it is outside the range of the system's clock"))
}

/// Formats a time in UTC as `YYYY-MM-DDTHH:MM:SS[.ffffff]+00:00`, with
/// microseconds unless they are zero, as Python does.
///
/// Times outside the years 1 to 9999 are clamped to this range, because Python
/// supports no others.
pub fn format(time: SystemTime) -> String {
    let time = civil(time).clamp(PYTHON_MIN, PYTHON_MAX);
    let micros = time.subsec_nanosecond() / 1000;
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    if micros > 0 {
        text.push_str(&format!(".{micros:06}"));
    }
    text.push_str("+00:00");
    text
}

/// Converts to a date and time in UTC. jiff's `Timestamp` is not used, because
/// its range ends before that of Python's `datetime`.
fn civil(time: SystemTime) -> DateTime {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => EPOCH.checked_add(after).unwrap_or(DateTime::MAX),
        Err(before) => EPOCH
            .checked_sub(before.duration())
            .unwrap_or(DateTime::MIN),
    }
}

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// Python's `datetime.min`.
const PYTHON_MIN: DateTime = DateTime::constant(1, 1, 1, 0, 0, 0, 0);

/// Python's `datetime.max`.
const PYTHON_MAX: DateTime = DateTime::constant(9999, 12, 31, 23, 59, 59, 999_999_000);
