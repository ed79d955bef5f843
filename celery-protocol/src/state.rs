//! The states of a task.

use std::fmt;

/// The state of a task in its result document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// The state is unknown: the task was not sent, is waiting, or its result
    /// has expired.
    #[default]
    Pending,
    /// A worker has received the task and not started it.
    Received,
    /// The task is running.
    Started,
    /// The task returned a value.
    Success,
    /// The task failed.
    Failure,
    /// The task failed and will be retried.
    Retry,
    /// The task was revoked, or expired before it ran.
    Revoked,
    /// The worker rejected the task.
    Rejected,
    /// The result of the task is ignored.
    Ignored,
    /// A custom state that the task sets, such as `PROGRESS`.
    Custom(String),
}

/// The properties of a state in Celery.
struct StateRow {
    state: State,
    name: &'static str,
    /// Of two states that are reported for one task, the one with the smaller
    /// number is the newer.
    precedence: u8,
    sets: StateSets,
}

/// Membership of a state in Celery's sets of states.
struct StateSets {
    /// `READY_STATES`: no other state follows.
    ready: bool,
    /// `EXCEPTION_STATES`: the result is an exception.
    exception: bool,
    /// `PROPAGATE_STATES`: getting the result raises the exception.
    propagates: bool,
}

impl StateSets {
    const NONE: Self = Self::of(false, false, false);
    const RETURNED: Self = Self::of(true, false, false);
    const RAISED: Self = Self::of(true, true, true);
    const RETRIED: Self = Self::of(false, true, false);

    const fn of(ready: bool, exception: bool, propagates: bool) -> Self {
        Self {
            ready,
            exception,
            propagates,
        }
    }
}

const fn row(state: State, name: &'static str, precedence: u8, sets: StateSets) -> StateRow {
    StateRow {
        state,
        name,
        precedence,
        sets,
    }
}

/// The precedence of states that Celery's order does not contain: between
/// failure and revoked.
const CUSTOM_PRECEDENCE: u8 = 2;

static TABLE: [StateRow; 9] = [
    row(State::Success, "SUCCESS", 0, StateSets::RETURNED),
    row(State::Failure, "FAILURE", 1, StateSets::RAISED),
    row(
        State::Ignored,
        "IGNORED",
        CUSTOM_PRECEDENCE,
        StateSets::NONE,
    ),
    row(State::Revoked, "REVOKED", 3, StateSets::RAISED),
    row(State::Started, "STARTED", 4, StateSets::NONE),
    row(State::Received, "RECEIVED", 5, StateSets::NONE),
    row(State::Rejected, "REJECTED", 6, StateSets::NONE),
    row(State::Retry, "RETRY", 7, StateSets::RETRIED),
    row(State::Pending, "PENDING", 8, StateSets::NONE),
];

impl State {
    /// Returns the state with the given name. An unknown name is a custom
    /// state.
    pub fn named(name: &str) -> Self {
        match TABLE.iter().find(|row| row.name == name) {
            Some(row) => row.state.clone(),
            None => Self::Custom(name.to_owned()),
        }
    }

    /// Returns the name in result documents: `SUCCESS`.
    pub fn name(&self) -> &str {
        match (self, self.row()) {
            (Self::Custom(name), _) => name,
            (_, Some(row)) => row.name,
            (_, None) => "",
        }
    }

    /// Returns whether no other state follows: success, failure, revoked.
    pub fn is_ready(&self) -> bool {
        self.row().is_some_and(|row| row.sets.ready)
    }

    /// Returns whether the result is an exception: failure, retry, revoked.
    pub fn is_exception(&self) -> bool {
        self.row().is_some_and(|row| row.sets.exception)
    }

    /// Returns whether getting the result raises the exception: failure,
    /// revoked.
    pub fn propagates(&self) -> bool {
        self.row().is_some_and(|row| row.sets.propagates)
    }

    /// Returns the rank by which monitors determine the newer of two states
    /// that arrive out of order: the one with the smaller rank. Result backends
    /// do not use it; there, only success is never overwritten.
    pub fn precedence(&self) -> u8 {
        self.row().map_or(CUSTOM_PRECEDENCE, |row| row.precedence)
    }

    fn row(&self) -> Option<&'static StateRow> {
        TABLE.iter().find(|row| row.state == *self)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<&str> for State {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_found_by_its_name() {
        for row in &TABLE {
            assert_eq!(State::named(row.name), row.state);
            assert_eq!(row.state.to_string(), row.name);
        }
        let custom = State::named("PROGRESS");
        assert_eq!(custom, State::Custom("PROGRESS".into()));
        assert_eq!(custom.name(), "PROGRESS");
        assert!(!custom.is_ready() && !custom.is_exception() && !custom.propagates());
    }

    #[test]
    fn state_sets_equal_celerys() {
        let of = |is_member: fn(&State) -> bool| -> Vec<&str> {
            TABLE
                .iter()
                .filter(|row| is_member(&row.state))
                .map(|row| row.name)
                .collect()
        };
        assert_eq!(of(State::is_ready), ["SUCCESS", "FAILURE", "REVOKED"]);
        assert_eq!(of(State::is_exception), ["FAILURE", "REVOKED", "RETRY"]);
        assert_eq!(of(State::propagates), ["FAILURE", "REVOKED"]);
    }

    #[test]
    fn precedence_equals_celerys() {
        let order = [
            "SUCCESS", "FAILURE", "PROGRESS", "REVOKED", "STARTED", "RECEIVED", "REJECTED",
            "RETRY", "PENDING",
        ];
        let ranks: Vec<u8> = order
            .iter()
            .map(|name| State::named(name).precedence())
            .collect();
        assert_eq!(ranks, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(State::Ignored.precedence(), CUSTOM_PRECEDENCE);
    }
}
