//! Fetches that were sent to the server and never answered.
//!
//! The server may have executed such a fetch, before it crashed or after a
//! pause. The fetched messages are then unacked under tags that no consumer
//! knows, and would stay there until the visibility timeout, an hour by
//! default. The tags follow from the fetch, so the next consumer looks them up.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use celery_runtime::env;
use tokio::time::Instant;

/// The limit of recorded fetches. While a server is unreachable, each failed
/// `receive` adds at most one.
const MAX_UNCONFIRMED: usize = 100;

/// How late a request may reach the server, from a network or a proxy that holds it back.
const MAX_LATENESS: Duration = Duration::from_secs(120);

/// The unconfirmed fetches of all consumers of one broker.
#[derive(Debug, Default)]
pub(crate) struct UnconfirmedFetches {
    fetches: Mutex<Vec<UnconfirmedFetch>>,
}

/// The range of tags that one fetch may have assigned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnconfirmedFetch {
    prefix: String,
    first: u64,
    max: usize,
    queues: Vec<String>,
    /// When the answer was given up.
    lost_at: Instant,
}

impl UnconfirmedFetches {
    /// Starts a fetch. It counts as unconfirmed if the guard is dropped without
    /// [`confirm`](FetchGuard::confirm), also where the future of the fetch is
    /// dropped.
    pub(crate) fn begin(
        &self,
        prefix: &str,
        first: u64,
        max: usize,
        queues: &[String],
    ) -> FetchGuard<'_> {
        let fetch = UnconfirmedFetch {
            prefix: prefix.to_owned(),
            first,
            max,
            queues: queues.to_vec(),
            lost_at: env::instant(),
        };
        FetchGuard {
            fetches: self,
            fetch: Some(fetch),
        }
    }

    /// Records an unconfirmed fetch.
    pub(crate) fn add(&self, fetch: UnconfirmedFetch) {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if fetches.len() < MAX_UNCONFIRMED {
            fetches.push(fetch);
        }
    }

    /// Returns the fetches of an owner.
    pub(crate) fn of(&self, owner: &str) -> Vec<UnconfirmedFetch> {
        let fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its = |fetch: &&UnconfirmedFetch| fetch.is_of(owner);
        fetches.iter().filter(is_its).cloned().collect()
    }

    /// Removes the fetches that are looked up for good.
    pub(crate) fn remove(&self, is_final: impl Fn(&UnconfirmedFetch) -> bool) {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.retain(|fetch| !is_final(fetch));
    }
}

/// A fetch in progress.
#[derive(Debug)]
pub(crate) struct FetchGuard<'a> {
    fetches: &'a UnconfirmedFetches,
    fetch: Option<UnconfirmedFetch>,
}

impl FetchGuard<'_> {
    /// Marks the fetch as answered.
    pub(crate) fn confirm(mut self) {
        self.fetch = None;
    }
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        if let Some(mut fetch) = self.fetch.take() {
            fetch.lost_at = env::instant();
            self.fetches.add(fetch);
        }
    }
}

impl UnconfirmedFetch {
    pub(crate) fn is_of(&self, owner: &str) -> bool {
        self.prefix.starts_with(owner)
    }

    /// Returns whether the request may still reach the server, where the connection
    /// that it was sent on cannot be killed.
    pub(crate) fn may_arrive(&self) -> bool {
        self.lost_at.elapsed() <= MAX_LATENESS
    }

    /// Returns every tag that the fetch may have assigned.
    pub(crate) fn tags(&self) -> impl Iterator<Item = String> + '_ {
        let numbers = self.first..self.first + self.max as u64;
        numbers.flat_map(move |number| {
            let tag = move |queue| format!("{}{number}:{queue}", self.prefix);
            self.queues.iter().map(tag)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unanswered_fetch_is_recorded_with_its_tags() {
        let fetches = UnconfirmedFetches::default();
        let queues = ["a".to_owned(), "b".to_owned()];
        fetches.begin("u-", 0, 2, &queues).confirm();
        assert!(fetches.of("u").is_empty());
        drop(fetches.begin("u-", 7, 2, &queues));
        assert!(fetches.of("other").is_empty());
        let taken = fetches.of("u");
        let tags: Vec<String> = taken.iter().flat_map(UnconfirmedFetch::tags).collect();
        assert_eq!(tags, ["u-7:a", "u-7:b", "u-8:a", "u-8:b"]);
        fetches.remove(|fetch| taken.contains(fetch));
        assert!(fetches.of("u").is_empty());
    }
}
