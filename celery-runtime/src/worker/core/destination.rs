//! For whom a control command is meant. Pure.

use celery_protocol::ControlRequest;
use regex_lite::{Regex, RegexBuilder};

/// What a pattern may take when it is compiled.
const PATTERN_LIMIT: usize = 256 << 10;

/// Whether the worker called `node` is meant.
///
/// # Errors
///
/// When the pattern is none, or the way to read it is not known.
pub(crate) fn is_for(request: &ControlRequest, node: &str) -> Result<bool, String> {
    if !request.destination.is_empty() {
        return Ok(request.destination.iter().any(|name| name == node));
    }
    match (&request.pattern, &request.matcher) {
        (Some(pattern), Some(matcher)) => Ok(compile(pattern, matcher)?.is_match(node)),
        _ => Ok(true),
    }
}

fn compile(pattern: &str, matcher: &str) -> Result<Regex, String> {
    let pattern = match matcher {
        "glob" => format!("^(?s:{})$", glob(pattern)),
        "pcre" => format!("^(?:{pattern})"),
        other => {
            return Err(format!(
                "unknown matcher {other:?}; there are glob and pcre"
            ));
        }
    };
    RegexBuilder::new(&pattern)
        .size_limit(PATTERN_LIMIT)
        .build()
        .map_err(|error| format!("cannot read the pattern: {error}"))
}

/// A shell's pattern as an expression: `*`, `?` and `[…]` mean something.
fn glob(pattern: &str) -> String {
    let mut expression = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            '[' => match rest.get(1..).and_then(|after| after.find(']')) {
                Some(end) => {
                    let (inside, after) = rest.split_at(end + 1);
                    let inside = inside.replace('\\', "\\\\").replace('[', "\\[");
                    expression.push('[');
                    match inside.strip_prefix('!') {
                        Some(others) => {
                            expression.push('^');
                            expression.push_str(others);
                        }
                        // Means itself in a shell.
                        None if inside.starts_with('^') => {
                            expression.push('\\');
                            expression.push_str(&inside);
                        }
                        None => expression.push_str(&inside),
                    }
                    expression.push(']');
                    rest = &after[1..];
                }
                None => expression.push_str("\\["),
            },
            other => expression.push_str(&regex_lite::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_meant(pattern: &str, matcher: &str) -> Result<bool, String> {
        let mut request = ControlRequest::new("ping");
        request.pattern = Some(pattern.to_owned());
        request.matcher = Some(matcher.to_owned());
        is_for(&request, "w1@host")
    }

    #[test]
    fn globs_are_for_the_whole_name() {
        for pattern in [
            "*",
            "w?@host",
            "w[12]@*",
            "w[!2]@host",
            "w[^1]@host",
            "w1@host",
        ] {
            assert_eq!(is_meant(pattern, "glob"), Ok(true), "{pattern}");
        }
        for pattern in [
            "w",
            "w[!1]@host",
            "w[^2]@host",
            "w1@hos",
            "W1@host",
            "w[",
            "",
        ] {
            assert_eq!(is_meant(pattern, "glob"), Ok(false), "{pattern}");
        }
    }

    #[test]
    fn expressions_are_for_the_beginning() {
        assert_eq!(is_meant("w\\d@", "pcre"), Ok(true));
        assert_eq!(is_meant("host", "pcre"), Ok(false));
        assert!(is_meant("(", "pcre").is_err());
        assert!(is_meant("*", "regex").is_err());
        assert!(is_meant("(a{1000}){1000}", "pcre").is_err());
    }

    #[test]
    fn a_destination_goes_before_a_pattern() {
        let mut request = ControlRequest::new("ping");
        assert_eq!(is_for(&request, "w1@host"), Ok(true));
        request.destination = vec!["w2@host".to_owned()];
        request.pattern = Some("*".to_owned());
        request.matcher = Some("glob".to_owned());
        assert_eq!(is_for(&request, "w1@host"), Ok(false));
        assert_eq!(is_for(&request, "w2@host"), Ok(true));
    }
}
