//! Points in time as Celery writes them: ISO 8601.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;

use crate::error::DecodeError;

/// Reads an ISO 8601 time, as in the headers `eta` and `expires`.
///
/// An offset or `Z` is applied. A time without one is UTC, as Celery takes it.
/// Date and time are divided by `T` or a space; a date alone is its midnight.
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
/// When the text is no such time.
pub fn parse(text: &str) -> Result<SystemTime, DecodeError> {
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp.into());
    }
    text.parse::<civil::DateTime>()
        .and_then(|naive| TimeZone::UTC.to_timestamp(naive))
        .map(SystemTime::from)
        .map_err(|error| DecodeError::new(format!("{text:?} is no ISO 8601 time: {error}")))
}

/// Writes a time in UTC: `YYYY-MM-DDTHH:MM:SS[.ffffff]+00:00`, with
/// microseconds unless they are zero, as Python does.
///
/// Times outside of the years 1 to 9999 are written as the nearest one inside,
/// because Python has no others.
pub fn format(time: SystemTime) -> String {
    let time = civil_utc(time).clamp(
        civil::date(1, 1, 1).at(0, 0, 0, 0),
        civil::date(9999, 12, 31).at(23, 59, 59, 999_999_000),
    );
    let micros = time.subsec_nanosecond() / 1000;
    match micros {
        0 => format!("{}+00:00", time.strftime("%Y-%m-%dT%H:%M:%S")),
        _ => format!("{}.{micros:06}+00:00", time.strftime("%Y-%m-%dT%H:%M:%S")),
    }
}

fn civil_utc(time: SystemTime) -> civil::DateTime {
    let timestamp = Timestamp::try_from(time).unwrap_or(if time < SystemTime::UNIX_EPOCH {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    });
    TimeZone::UTC.to_datetime(timestamp)
}
