//! The states of a task.

use std::fmt;

/// The state of a task, as its result document names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Nothing is known of it: not sent, waiting, or its result expired.
    #[default]
    Pending,
    /// A worker has it and has not started it.
    Received,
    /// It is running.
    Started,
    /// It returned a value.
    Success,
    /// It failed.
    Failure,
    /// It is to be tried again.
    Retry,
    /// It was revoked, or expired before it ran.
    Revoked,
    /// The worker refused it.
    Rejected,
    /// Its outcome is of no interest.
    Ignored,
    /// A state of the task's own, such as `PROGRESS`.
    Custom(String),
}

/// What Celery knows about a state.
struct StateRow {
    state: State,
    name: &'static str,
    /// Among two reports of one task the smaller number tells more.
    precedence: u8,
    sets: StateSets,
}

/// Celery's sets of states.
struct StateSets {
    /// No other state follows.
    ready: bool,
    /// The result is an exception.
    exception: bool,
    /// Who waits for the result gets the exception raised.
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

/// States that Celery's order does not name rank between failure and revoked.
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
    /// Returns the state of this name; every name is one.
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

    /// Returns whether one who waits for the result gets the exception raised:
    /// failure, revoked.
    pub fn propagates(&self) -> bool {
        self.row().is_some_and(|row| row.sets.propagates)
    }

    /// Returns the rank by which monitors tell the newer of two states that
    /// arrive out of order; the smaller rank is the newer. Result backends do
    /// not use it: there, only success is never overwritten.
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
    fn names_are_read_back() {
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
    fn sets_are_celerys() {
        let of = |asked: fn(&State) -> bool| -> Vec<&str> {
            TABLE
                .iter()
                .filter(|row| asked(&row.state))
                .map(|row| row.name)
                .collect()
        };
        assert_eq!(of(State::is_ready), ["SUCCESS", "FAILURE", "REVOKED"]);
        assert_eq!(of(State::is_exception), ["FAILURE", "REVOKED", "RETRY"]);
        assert_eq!(of(State::propagates), ["FAILURE", "REVOKED"]);
    }

    #[test]
    fn precedence_is_celerys() {
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
