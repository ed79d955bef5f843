//! Names of kombu's keys and channels in Redis.

/// The separator between the parts of keys and binding members.
pub const SEPARATOR: &str = "\x06\x16";

/// The priorities that have a separate list, with kombu's default. The first
/// has the highest precedence.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];

/// Returns the step of a priority: the largest step that is not above it.
/// Priorities above 9 count as 9.
pub fn priority_step(priority: u8) -> u8 {
    let steps = PRIORITY_STEPS.iter().rev();
    steps
        .copied()
        .find(|step| *step <= priority)
        .unwrap_or_default()
}

/// Returns the key of the list for one priority step of a queue. For step 0, it
/// is the name of the queue.
pub fn priority_key(queue: &str, step: u8) -> String {
    match step {
        0 => queue.to_owned(),
        step => format!("{queue}{SEPARATOR}{step}"),
    }
}

/// Returns the key of the set with the bindings of an exchange.
pub fn binding_key(exchange: &str) -> String {
    format!("_kombu.binding.{exchange}")
}

/// Returns the member of the binding set that binds `queue`. `pattern` is empty
/// except for topic exchanges, see [`topic_pattern`].
pub fn binding_member(routing_key: &str, pattern: &str, queue: &str) -> String {
    [routing_key, pattern, queue].join(SEPARATOR)
}

/// Splits a member of a binding set into routing key, pattern and queue.
pub fn split_binding_member(member: &str) -> Option<(&str, &str, &str)> {
    let mut parts = member.split(SEPARATOR);
    let found = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

/// Returns the regular expression that kombu stores for a binding of a topic
/// exchange. `*` matches one word and `#` any text. A dot before `#` must
/// match: unlike in RabbitMQ, `a.#` does not match `a`.
pub fn topic_pattern(routing_key: &str) -> String {
    let word = |word: &str| match word {
        "*" => r"[^\.]+".to_owned(),
        "#" => ".*?".to_owned(),
        word => escape_pattern(word),
    };
    let words: Vec<String> = routing_key.split('.').map(word).collect();
    format!("^{}$", words.join(r"\."))
}

/// Puts a backslash before every character other than letters and digits, as
/// kombu does. `*` and `#` inside a longer word are not escaped.
fn escape_pattern(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    for character in word.chars() {
        if !character.is_alphanumeric() && !"*#".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Returns the pub/sub channel of a fanout exchange in database `db`. With a
/// routing key, it is the channel of that key, for kombu's `fanout_patterns`.
pub fn fanout_topic(db: u32, exchange: &str, routing_key: &str) -> String {
    match routing_key {
        "" => format!("/{db}.{exchange}"),
        key => format!("/{db}.{exchange}/{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_steps_equal_kombus() {
        let steps: Vec<u8> = (0..=10).map(priority_step).collect();
        assert_eq!(steps, [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9]);
        assert_eq!(priority_step(u8::MAX), 9);
    }

    #[test]
    fn redis_keys_equal_kombus() {
        assert_eq!(priority_key("celery", 0), "celery");
        assert_eq!(priority_key("celery", 3), "celery\x06\x163");
        assert_eq!(binding_key("celery"), "_kombu.binding.celery");
        let member = binding_member("celery", "", "celery");
        assert_eq!(member, "celery\x06\x16\x06\x16celery");
        assert_eq!(
            split_binding_member(&member),
            Some(("celery", "", "celery"))
        );
        assert_eq!(split_binding_member("celery"), None);
        assert_eq!(split_binding_member(&format!("{member}{SEPARATOR}x")), None);
    }

    #[test]
    fn topic_patterns_equal_kombus() {
        assert_eq!(topic_pattern("a.*.c.#"), r"^a\.[^\.]+\.c\..*?$");
        assert_eq!(topic_pattern("my-key_1.b"), r"^my\-key\_1\.b$");
        assert_eq!(fanout_topic(0, "celery.pidbox", ""), "/0.celery.pidbox");
        let topic = fanout_topic(0, "celeryev", "worker.heartbeat");
        assert_eq!(topic, "/0.celeryev/worker.heartbeat");
    }
}
