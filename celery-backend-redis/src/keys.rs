//! The names of keys, as Celery's key-value backends make them. Pure.

/// The prefix of all keys of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// Celery puts a `_` behind a `global_keyprefix` that ends in a letter or
    /// digit.
    pub(crate) fn new(global_keyprefix: &str) -> Self {
        let prefix = match global_keyprefix.chars().last() {
            None | Some(':' | '_' | '-' | '.') => global_keyprefix.to_owned(),
            Some(_) => format!("{global_keyprefix}_"),
        };
        Self { prefix }
    }

    /// The document of a task; also the channel on which it is announced.
    pub(crate) fn task(&self, id: &str) -> String {
        format!("{}celery-task-meta-{id}", self.prefix)
    }

    /// The members of a group.
    pub(crate) fn group(&self, id: &str) -> String {
        format!("{}celery-taskset-meta-{id}", self.prefix)
    }

    /// All keys that the chord of this group has, in the order in which the
    /// scripts take them: Celery's six, then our two.
    pub(crate) fn chord(&self, id: &str) -> [String; 8] {
        let group = self.group(id);
        [
            format!("{group}.j"),
            format!("{group}.t"),
            format!("{group}.s"),
            format!("{group}.d"),
            group.clone(),
            format!("{group}.c"),
            format!("{group}.b"),
            self.chords(),
        ]
    }

    /// The chords that are under way, by when a sweeper looks at them.
    pub(crate) fn chords(&self) -> String {
        format!("{}celery-rs-chords", self.prefix)
    }

    /// A store_value of a [`Store`](celery_runtime::Store), which Python knows nothing of.
    pub(crate) fn store_value(&self, key: &str) -> String {
        format!("{}celery-rs-{key}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_as_celery_writes_them() {
        assert_eq!(Keys::new("").task("1"), "celery-task-meta-1");
        assert_eq!(Keys::new("rp").task("1"), "rp_celery-task-meta-1");
        for end in [":", "_", "-", "."] {
            let prefix = format!("rp{end}");
            let expected = format!("rp{end}celery-taskset-meta-1");
            assert_eq!(Keys::new(&prefix).group("1"), expected);
        }
    }
}
