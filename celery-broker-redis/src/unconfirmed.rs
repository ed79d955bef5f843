//! Takings whose answer never came.
//!
//! The server may have carried them out: before it died, or after it had been
//! silent. What they took is noted as held by tags that nobody was told, and
//! would wait for the visibility timeout, an hour. But the tags are ours, so the
//! next consumer can look for them.

use std::sync::{Mutex, PoisonError};

/// UnconfirmedFetches that are kept; a server that stays away gives no more than one a try.
const MAX_UNCONFIRMED: usize = 100;

/// The takings of one broker's consumers that are in fetch.
#[derive(Debug, Default)]
pub(crate) struct UnconfirmedFetches {
    fetches: Mutex<Vec<UnconfirmedFetch>>,
}

/// The tags that one taking may have given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnconfirmedFetch {
    prefix: String,
    first: u64,
    most: usize,
    queues: Vec<String>,
}

impl UnconfirmedFetches {
    /// A taking is about to begin; it is in fetch until it is
    /// [`confirm`](FetchGuard::confirm), also if nobody waits for it any more.
    pub(crate) fn begin(
        &self,
        prefix: &str,
        first: u64,
        most: usize,
        queues: &[String],
    ) -> FetchGuard<'_> {
        let fetch = UnconfirmedFetch {
            prefix: prefix.to_owned(),
            first,
            most,
            queues: queues.to_vec(),
        };
        FetchGuard {
            fetches: self,
            fetch: Some(fetch),
        }
    }

    pub(crate) fn add(&self, fetch: UnconfirmedFetch) {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if fetches.len() < MAX_UNCONFIRMED {
            fetches.push(fetch);
        }
    }

    /// Takes out the fetches about these queues.
    pub(crate) fn take(&self, queues: &[String]) -> Vec<UnconfirmedFetch> {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, others) = std::mem::take(&mut *fetches)
            .into_iter()
            .partition(|fetch| fetch.queues.iter().all(|queue| queues.contains(queue)));
        *fetches = others;
        ours
    }
}

/// A taking that is under way.
#[derive(Debug)]
pub(crate) struct FetchGuard<'a> {
    fetches: &'a UnconfirmedFetches,
    fetch: Option<UnconfirmedFetch>,
}

impl FetchGuard<'_> {
    /// The answer came.
    pub(crate) fn confirm(mut self) {
        self.fetch = None;
    }
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            self.fetches.add(fetch);
        }
    }
}

impl UnconfirmedFetch {
    pub(crate) fn tags(&self) -> impl Iterator<Item = String> + '_ {
        let numbers = self.first..self.first + self.most as u64;
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
    fn only_what_was_not_answered_is_in_doubt() {
        let fetches = UnconfirmedFetches::default();
        let queues = ["a".to_owned(), "b".to_owned()];
        fetches.begin("u-", 0, 2, &queues).confirm();
        assert!(fetches.take(&queues).is_empty());
        drop(fetches.begin("u-", 7, 2, &queues));
        assert!(fetches.take(&queues[..1]).is_empty(), "another's queue");
        let taken = fetches.take(&queues);
        let tags: Vec<String> = taken.iter().flat_map(UnconfirmedFetch::tags).collect();
        assert_eq!(tags, ["u-7:a", "u-7:b", "u-8:a", "u-8:b"]);
        assert!(fetches.take(&queues).is_empty());
    }
}
