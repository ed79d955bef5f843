//! Key names, as in Celery's key-value backends. No I/O.

/// The key prefix of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// Returns the keys for a `global_keyprefix`. Like Celery it appends `_`,
    /// unless the prefix is empty or ends in one of `: _ - .`.
    pub(crate) fn new(global_keyprefix: &str) -> Self {
        let prefix = match global_keyprefix.chars().last() {
            None | Some(':' | '_' | '-' | '.') => global_keyprefix.to_owned(),
            Some(_) => format!("{global_keyprefix}_"),
        };
        Self { prefix }
    }

    /// Returns the key of a task's document; also the name of its channel.
    pub(crate) fn task(&self, id: &str) -> String {
        format!("{}celery-task-meta-{id}", self.prefix)
    }

    /// Returns the key of a group's members.
    pub(crate) fn group(&self, id: &str) -> String {
        format!("{}celery-taskset-meta-{id}", self.prefix)
    }

    /// Returns all keys of the chord of this group, in the order of the
    /// scripts: Celery's six, then the two of this crate.
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

    /// Returns the sorted set of running chords by the time of their next
    /// check.
    pub(crate) fn chords(&self) -> String {
        format!("{}celery-rs-chords", self.prefix)
    }

    /// Returns the key of a value of a [`Store`](celery_runtime::Store), which
    /// Python does not use.
    pub(crate) fn store_value(&self, key: &str) -> String {
        format!("{}celery-rs-{key}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_prefix_matches_celery() {
        assert_eq!(Keys::new("").task("1"), "celery-task-meta-1");
        assert_eq!(Keys::new("rp").task("1"), "rp_celery-task-meta-1");
        for end in [":", "_", "-", "."] {
            let prefix = format!("rp{end}");
            let expected = format!("rp{end}celery-taskset-meta-1");
            assert_eq!(Keys::new(&prefix).group("1"), expected);
        }
    }
}
