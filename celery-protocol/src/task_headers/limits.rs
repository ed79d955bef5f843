//! The header `timelimit`.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer as SerdeSerializer};

/// Hard and soft time limits in seconds, the header `timelimit`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeLimits {
    /// The worker terminates the task after this time.
    pub hard: Option<f64>,
    /// The worker signals the task to stop after this time.
    pub soft: Option<f64>,
}

impl Serialize for TimeLimits {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Seconds(self.hard), Seconds(self.soft)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TimeLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (hard, soft) = Option::deserialize(deserializer)?.unwrap_or_default();
        Ok(Self { hard, soft })
    }
}

/// A number of seconds. Whole seconds are encoded as an integer, as Python
/// encodes an `int`.
struct Seconds(Option<f64>);

impl Serialize for Seconds {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53, above which f64 cannot represent every integer
        match self.0 {
            None => serializer.serialize_none(),
            Some(seconds) if seconds.fract() == 0.0 && seconds.abs() < EXACT => {
                serializer.serialize_i64(seconds as i64)
            }
            Some(seconds) => serializer.serialize_f64(seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Serializer;

    #[test]
    fn whole_time_limits_are_written_as_integers() {
        let limits = TimeLimits {
            hard: Some(30.0),
            soft: Some(20.5),
        };
        assert_eq!(Serializer::Json.encode(&limits).unwrap(), b"[30,20.5]");
    }
}
