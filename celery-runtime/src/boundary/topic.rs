//! Matching of AMQP topic patterns.

/// Returns whether a routing key matches an AMQP topic pattern.
///
/// Words are separated by dots; `*` matches one word and `#` any number of them,
/// also none. The empty pattern matches every key. The running time is at most
/// proportional to the product of both lengths.
///
/// ```
/// use celery_runtime::topic_matches;
///
/// assert!(topic_matches("worker.*", "worker.online"));
/// assert!(!topic_matches("worker.*", "worker.online.now"));
/// assert!(topic_matches("worker.#", "worker.online.now"));
/// ```
pub fn topic_matches(pattern: &str, key: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let key: Vec<&str> = key.split('.').collect();
    // reached[n]: the pattern read so far matches the first n words of the key.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_pattern_matches_words() {
        for (pattern, key, expected) in [
            ("", "any.thing", true),
            ("#", "", true),
            ("#", "any.thing", true),
            ("worker.*", "worker.online", true),
            ("worker.*", "worker.online.now", false),
            ("worker.#", "worker", true),
            ("#.end", "a.b.end", true),
            ("#.end", "a.b", false),
            ("a.#.b.#.c", "a.b.c", true),
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn hostile_topic_pattern_takes_bounded_time() {
        assert!(!topic_matches(&"#.".repeat(200), &"a".repeat(200)));
        assert!(topic_matches(&"#.".repeat(200), &"a.".repeat(200)));
    }
}
