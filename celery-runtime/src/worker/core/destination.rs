//! Matches the destination or pattern of a control command with a worker. Pure.

use celery_protocol::ControlRequest;
use regex_lite::{Regex, RegexBuilder};

/// The maximum size of a compiled pattern, in bytes.
const PATTERN_SIZE_LIMIT: usize = 256 << 10;

/// Returns whether a control command addresses the worker named `node`. A destination
/// list takes precedence over a pattern.
///
/// # Errors
///
/// When the pattern is invalid or the matcher is unknown.
pub(crate) fn matches(request: &ControlRequest, node: &str) -> Result<bool, String> {
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
            return Err(format!("unknown matcher {other:?}; use glob or pcre"));
        }
    };
    RegexBuilder::new(&pattern)
        .size_limit(PATTERN_SIZE_LIMIT)
        .build()
        .map_err(|error| format!("invalid pattern: {error}"))
}

/// Converts a shell pattern with `*`, `?` and `[...]` to a regular expression.
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
                        // A literal in a shell pattern.
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

    fn matches_node(pattern: &str, matcher: &str) -> Result<bool, String> {
        let mut request = ControlRequest::new("ping");
        request.pattern = Some(pattern.to_owned());
        request.matcher = Some(matcher.to_owned());
        matches(&request, "w1@host")
    }

    #[test]
    fn glob_matches_whole_name() {
        for pattern in [
            "*",
            "w?@host",
            "w[12]@*",
            "w[!2]@host",
            "w[^1]@host",
            "w1@host",
        ] {
            assert_eq!(matches_node(pattern, "glob"), Ok(true), "{pattern}");
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
            assert_eq!(matches_node(pattern, "glob"), Ok(false), "{pattern}");
        }
    }

    #[test]
    fn regex_matches_prefix() {
        assert_eq!(matches_node("w\\d@", "pcre"), Ok(true));
        assert_eq!(matches_node("host", "pcre"), Ok(false));
        assert!(matches_node("(", "pcre").is_err());
        assert!(matches_node("*", "regex").is_err());
        assert!(matches_node("(a{1000}){1000}", "pcre").is_err());
    }

    #[test]
    fn destination_takes_precedence_over_pattern() {
        let mut request = ControlRequest::new("ping");
        assert_eq!(matches(&request, "w1@host"), Ok(true));
        request.destination = vec!["w2@host".to_owned()];
        request.pattern = Some("*".to_owned());
        request.matcher = Some("glob".to_owned());
        assert_eq!(matches(&request, "w1@host"), Ok(false));
        assert_eq!(matches(&request, "w2@host"), Ok(true));
    }
}
