//! Rate limits in Celery's notation: [`RateLimit`].

/// A rate limit in Celery's notation: `10/s`, `5/m`, `2.5/h`, or `0` for no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RateLimit {
    /// Starts per second; `None` without a limit.
    pub(crate) per_second: Option<f64>,
}

impl RateLimit {
    /// Parses Celery's notation. A number without a unit is per second.
    ///
    /// # Errors
    ///
    /// Returns the reply of Celery's `rate_limit` command: the `repr` of the exception.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.split_once('/') {
            Some((number, unit)) => (number, unit.trim()),
            None => (text, "s"),
        };
        let value_error = || {
            let number = number.trim();
            format!("ValueError(\"could not convert string to float: '{number}'\")")
        };
        let count: f64 = number.trim().parse().map_err(|_| value_error())?;
        let seconds = match unit.to_ascii_lowercase().as_str() {
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => return Err(format!("KeyError('{other}')")),
        };
        if !count.is_finite() || count < 0.0 {
            return Err(format!(
                "ValueError('a rate must not be negative: {number}')"
            ));
        }
        let per_second = (count > 0.0).then_some(count / seconds);
        Ok(Self { per_second })
    }

    /// Checks the value of a setting or option.
    ///
    /// # Errors
    ///
    /// Returns a message that names the expected notation.
    pub(crate) fn check(text: &str) -> Result<(), String> {
        match Self::parse(text) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "expected a rate like 10/s, 5/m or 2.5/h, found {text:?}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(text: &str) -> Result<Option<f64>, String> {
        RateLimit::parse(text).map(|limit| limit.per_second)
    }

    #[test]
    fn rate_limit_is_parsed_as_by_celery() {
        assert_eq!(per_second("10/s"), Ok(Some(10.0)));
        assert_eq!(per_second("30/m"), Ok(Some(0.5)));
        assert_eq!(per_second("1.8/h"), Ok(Some(0.0005)));
        assert_eq!(per_second("5"), Ok(Some(5.0)));
        assert_eq!(per_second("0"), Ok(None));
        assert_eq!(
            RateLimit::parse("abc/s").unwrap_err(),
            "ValueError(\"could not convert string to float: 'abc'\")"
        );
        assert!(RateLimit::parse("1/d").is_err());
        assert!(RateLimit::parse("-1").is_err());
        assert!(RateLimit::parse("nan").is_err());
    }
}
