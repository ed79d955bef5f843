//! Matching of routing keys.

/// Whether a routing key matches the regular expression that kombu stores for
/// a topic binding. Only the forms that kombu writes are understood; any other
/// matches nothing.
pub(crate) fn matches_stored(pattern: &str, key: &str) -> bool {
    match stored_parts(pattern) {
        Some(parts) => matches(&parts, key),
        None => false,
    }
}

/// Whether a routing key matches a pattern of AMQP: `*` is one word, `#` any
/// number of them; the empty pattern is `#`.
pub(crate) fn matches_words(pattern: &str, key: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let key: Vec<&str> = key.split('.').collect();
    // The positions in the key that the pattern so far can have come to.
    let mut reached = vec![false; key.len() + 1];
    reached[0] = true;
    for word in pattern.split('.') {
        let mut next = vec![false; key.len() + 1];
        for at in 0..=key.len() {
            next[at] = match word {
                "#" => reached[at] || (at > 0 && next[at - 1]),
                "*" => at > 0 && reached[at - 1],
                word => at > 0 && reached[at - 1] && key[at - 1] == word,
            };
        }
        reached = next;
    }
    reached[key.len()]
}

enum Part {
    Letter(char),
    /// `[^\.]+`
    Word,
    /// `.*?`
    Any,
}

fn stored_parts(pattern: &str) -> Option<Vec<Part>> {
    let mut rest = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let mut parts = Vec::new();
    while let Some(letter) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(r"[^\.]+") {
            parts.push(Part::Word);
            rest = after;
        } else if let Some(after) = rest.strip_prefix(".*?") {
            parts.push(Part::Any);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('\\') {
            let letter = after.chars().next()?;
            parts.push(Part::Letter(letter));
            rest = &after[letter.len_utf8()..];
        } else if ".[]()+?{}|^$".contains(letter) {
            return None;
        } else {
            parts.push(Part::Letter(letter));
            rest = &rest[letter.len_utf8()..];
        }
    }
    Some(parts)
}

/// One pass for each part, so no pattern takes more than its length times the
/// key's.
fn matches(parts: &[Part], key: &str) -> bool {
    let key: Vec<char> = key.chars().collect();
    let mut reached = vec![false; key.len() + 1];
    reached[0] = true;
    for part in parts {
        let mut next = vec![false; key.len() + 1];
        for at in 0..=key.len() {
            next[at] = match part {
                Part::Letter(letter) => at > 0 && reached[at - 1] && key[at - 1] == *letter,
                Part::Word => at > 0 && (reached[at - 1] || next[at - 1]) && key[at - 1] != '.',
                Part::Any => reached[at] || (at > 0 && next[at - 1]),
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
    fn stored_patterns_match_as_in_kombu() {
        let pattern = topic_pattern("a.*.c.#");
        assert!(matches_stored(&pattern, "a.b.c.d"));
        assert!(matches_stored(&pattern, "a.b.c.d.e"));
        assert!(!matches_stored(&pattern, "a.b.c"), "unlike on RabbitMQ");
        assert!(!matches_stored(&pattern, "a.b.x.d"));
        assert!(matches_stored(&topic_pattern("my-key_1"), "my-key_1"));
        assert!(matches_stored(&topic_pattern("#"), ""));
        assert!(!matches_stored(&topic_pattern("*"), "a.b"));
    }

    #[test]
    fn other_expressions_match_nothing() {
        assert!(!matches_stored("^a(b|c)$", "ab"));
        assert!(!matches_stored("a", "a"));
        assert!(!matches_stored("^a\\$", "a"));
    }

    #[test]
    fn words_match_as_in_amqp() {
        for (pattern, key, expected) in [
            ("", "any.thing", true),
            ("#", "", true),
            ("worker.*", "worker.online", true),
            ("worker.*", "worker.online.now", false),
            ("worker.#", "worker", true),
            ("#.end", "a.b.end", true),
            ("#.end", "a.b", false),
            ("a.#.b.#.c", "a.b.c", true),
        ] {
            assert_eq!(matches_words(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_time() {
        let pattern = format!("^{}$", ".*?".repeat(200));
        assert!(matches_stored(&pattern, &"a".repeat(200)));
        assert!(!matches_words(&"#.".repeat(200), &"a".repeat(200)));
    }
}
