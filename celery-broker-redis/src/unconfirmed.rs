//! Takings whose answer never came.
//!
//! The server may have carried them out: before it died, or after it had been
//! silent. What they took is noted as held by tags that nobody was told, and
//! would wait for the visibility timeout, an hour. But the tags are ours, so the
//! next consumer can look for them.

use std::sync::{Mutex, PoisonError};

/// Doubts that are kept; a server that stays away gives no more than one a try.
const KEPT: usize = 100;

/// The takings of one broker's consumers that are in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    doubts: Mutex<Vec<Doubt>>,
}

/// The tags that one taking may have given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doubt {
    prefix: String,
    first: u64,
    most: usize,
    queues: Vec<String>,
}

impl Doubts {
    /// A taking is about to begin; it is in doubt until it is
    /// [`settled`](InDoubt::settled), also if nobody waits for it any more.
    pub(crate) fn begin(
        &self,
        prefix: &str,
        first: u64,
        most: usize,
        queues: &[String],
    ) -> InDoubt<'_> {
        let doubt = Doubt {
            prefix: prefix.to_owned(),
            first,
            most,
            queues: queues.to_vec(),
        };
        InDoubt {
            doubts: self,
            doubt: Some(doubt),
        }
    }

    pub(crate) fn add(&self, doubt: Doubt) {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() < KEPT {
            doubts.push(doubt);
        }
    }

    /// Takes out the doubts about these queues.
    pub(crate) fn take(&self, queues: &[String]) -> Vec<Doubt> {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, others) = std::mem::take(&mut *doubts)
            .into_iter()
            .partition(|doubt| doubt.queues.iter().all(|queue| queues.contains(queue)));
        *doubts = others;
        ours
    }
}

/// A taking that is under way.
#[derive(Debug)]
pub(crate) struct InDoubt<'a> {
    doubts: &'a Doubts,
    doubt: Option<Doubt>,
}

impl InDoubt<'_> {
    /// The answer came.
    pub(crate) fn settled(mut self) {
        self.doubt = None;
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        if let Some(doubt) = self.doubt.take() {
            self.doubts.add(doubt);
        }
    }
}

impl Doubt {
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
        let doubts = Doubts::default();
        let queues = ["a".to_owned(), "b".to_owned()];
        doubts.begin("u-", 0, 2, &queues).settled();
        assert!(doubts.take(&queues).is_empty());
        drop(doubts.begin("u-", 7, 2, &queues));
        assert!(doubts.take(&queues[..1]).is_empty(), "another's queue");
        let taken = doubts.take(&queues);
        let tags: Vec<String> = taken.iter().flat_map(Doubt::tags).collect();
        assert_eq!(tags, ["u-7:a", "u-7:b", "u-8:a", "u-8:b"]);
        assert!(doubts.take(&queues).is_empty());
    }
}
