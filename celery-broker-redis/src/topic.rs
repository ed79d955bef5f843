//! Matching of routing keys.

/// Returns whether a routing key matches the regular expression that kombu
/// stores for a topic binding. It supports only the forms that kombu writes;
/// any other expression matches nothing.
pub(crate) fn matches_stored_pattern(pattern: &str, key: &str) -> bool {
    match parse_stored_pattern(pattern) {
        Some(tokens) => matches_tokens(&tokens, key),
        None => false,
    }
}

/// An element of a stored expression.
enum PatternToken {
    Char(char),
    /// `[^\.]+`
    Word,
    /// `.*?`
    Any,
}

/// Parses a stored expression; returns `None` for unsupported forms.
fn parse_stored_pattern(pattern: &str) -> Option<Vec<PatternToken>> {
    let mut rest = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let mut tokens = Vec::new();
    while let Some(character) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(r"[^\.]+") {
            tokens.push(PatternToken::Word);
            rest = after;
        } else if let Some(after) = rest.strip_prefix(".*?") {
            tokens.push(PatternToken::Any);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('\\') {
            let character = after.chars().next()?;
            tokens.push(PatternToken::Char(character));
            rest = &after[character.len_utf8()..];
        } else if ".[]()+?{}|^$".contains(character) {
            return None;
        } else {
            tokens.push(PatternToken::Char(character));
            rest = &rest[character.len_utf8()..];
        }
    }
    Some(tokens)
}

/// Matches in one pass per token, so the time is bounded by the length of the
/// pattern times the length of the key.
fn matches_tokens(tokens: &[PatternToken], key: &str) -> bool {
    let key: Vec<char> = key.chars().collect();
    let mut reached = vec![false; key.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; key.len() + 1];
        for at in 0..=key.len() {
            next[at] = match token {
                PatternToken::Char(character) => {
                    at > 0 && reached[at - 1] && key[at - 1] == *character
                }
                PatternToken::Word => {
                    at > 0 && (reached[at - 1] || next[at - 1]) && key[at - 1] != '.'
                }
                PatternToken::Any => reached[at] || (at > 0 && next[at - 1]),
            };
        }
        reached = next;
    }
    reached[key.len()]
}

#[cfg(test)]
mod tests {
    use celery_protocol::kombu::topic_pattern;

    use super::*;

    #[test]
    fn stored_pattern_matches_as_in_kombu() {
        let pattern = topic_pattern("a.*.c.#");
        assert!(matches_stored_pattern(&pattern, "a.b.c.d"));
        assert!(matches_stored_pattern(&pattern, "a.b.c.d.e"));
        assert!(
            !matches_stored_pattern(&pattern, "a.b.c"),
            "unlike on RabbitMQ"
        );
        assert!(!matches_stored_pattern(&pattern, "a.b.x.d"));
        assert!(matches_stored_pattern(
            &topic_pattern("my-key_1"),
            "my-key_1"
        ));
        assert!(matches_stored_pattern(&topic_pattern("#"), ""));
        assert!(!matches_stored_pattern(&topic_pattern("*"), "a.b"));
    }

    #[test]
    fn unsupported_expression_matches_nothing() {
        assert!(!matches_stored_pattern("^a(b|c)$", "ab"));
        assert!(!matches_stored_pattern("a", "a"));
        assert!(!matches_stored_pattern("^a\\$", "a"));
    }

    #[test]
    fn pathological_pattern_is_matched_in_bounded_time() {
        let pattern = format!("^{}$", ".*?".repeat(200));
        assert!(matches_stored_pattern(&pattern, &"a".repeat(200)));
    }
}
