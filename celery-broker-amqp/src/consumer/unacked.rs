//! What a channel has delivered and nobody has settled yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;

/// The deliveries of one channel, by their tags.
#[derive(Debug, Default)]
pub(super) struct UnackedDeliveries {
    held: BTreeMap<u64, UnackedDelivery>,
    /// Every tag up to this one has been here. Tags count from 1 for the whole
    /// channel, and one queue's deliveries may be read before another's.
    seen: u64,
    /// Tags after that.
    ahead: BTreeSet<u64>,
}

/// A delivery as it came, to be sent on as it is.
#[derive(Clone, Debug)]
pub(super) struct UnackedDelivery {
    /// Which of the consumer's queues it came from.
    pub(super) queue_index: usize,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) redelivered: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// An acknowledgement to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    One(u64),
    /// This one and all before it.
    UpTo(u64),
}

impl UnackedDeliveries {
    pub(super) fn insert(&mut self, tag: u64, held: UnackedDelivery) {
        self.held.insert(tag, held);
        self.ahead.insert(tag);
        while self.ahead.remove(&(self.seen + 1)) {
            self.seen += 1;
        }
    }

    pub(super) fn get(&self, tag: u64) -> Option<&UnackedDelivery> {
        self.held.get(&tag)
    }

    pub(super) fn contains(&self, tag: u64) -> bool {
        self.held.contains_key(&tag)
    }

    pub(super) fn remove(&mut self, tags: impl IntoIterator<Item = u64>) {
        for tag in tags {
            self.held.remove(&tag);
        }
    }

    /// The fewest frames that acknowledge `tags` and nothing else: one for all
    /// that lie before the oldest that stays, or that may be on its way here.
    pub(super) fn acks(&self, mut tags: Vec<u64>) -> Vec<Ack> {
        tags.sort_unstable();
        tags.dedup();
        tags.retain(|tag| self.held.contains_key(tag));
        let stays = |tag: &&u64| tags.binary_search(tag).is_err();
        let oldest = self.held.keys().find(stays).copied();
        let oldest = oldest.unwrap_or(u64::MAX).min(self.seen + 1);
        let together = tags.partition_point(|tag| *tag < oldest);
        let (first, rest) = tags.split_at(together);
        let first = match first {
            [] => None,
            [one] => Some(Ack::One(*one)),
            [.., last] => Some(Ack::UpTo(*last)),
        };
        first
            .into_iter()
            .chain(rest.iter().map(|tag| Ack::One(*tag)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unacked(tags: &[u64]) -> UnackedDeliveries {
        let mut unacked = UnackedDeliveries::default();
        for tag in tags {
            let held = UnackedDelivery {
                queue_index: 0,
                exchange: "".into(),
                routing_key: "q".into(),
                redelivered: false,
                properties: BasicProperties::default(),
                body: Bytes::new(),
            };
            unacked.insert(*tag, held);
        }
        unacked
    }

    #[test]
    fn what_lies_before_the_oldest_that_stays_goes_together() {
        for (held, tags, expected) in [
            (&[1, 2, 3][..], &[3, 1, 2][..], &[Ack::UpTo(3)][..]),
            (&[1, 2, 3, 4], &[1, 2, 4], &[Ack::UpTo(2), Ack::One(4)]),
            (&[1, 2, 3], &[2, 3], &[Ack::One(2), Ack::One(3)]),
            (&[1, 2], &[1], &[Ack::One(1)]),
            (&[5, 9], &[5, 9], &[Ack::One(5), Ack::One(9)]),
            (&[2, 1, 4], &[1, 2, 4], &[Ack::UpTo(2), Ack::One(4)]),
            (&[1], &[7], &[]),
        ] {
            assert_eq!(
                unacked(held).acks(tags.to_vec()),
                expected,
                "{held:?} {tags:?}"
            );
        }
    }

    /// Whatever is acknowledged, it is exactly what was asked for.
    #[test]
    fn no_other_delivery_is_acknowledged() {
        for mask in 0..1u32 << 8 {
            let held: Vec<u64> = (1..=8).collect();
            let asked: Vec<u64> = held
                .iter()
                .copied()
                .filter(|tag| mask >> (tag - 1) & 1 == 1)
                .collect();
            let mut acknowledged: Vec<u64> = Vec::new();
            for ack in unacked(&held).acks(asked.clone()) {
                match ack {
                    Ack::One(tag) => acknowledged.push(tag),
                    Ack::UpTo(last) => acknowledged.extend(held.iter().filter(|tag| **tag <= last)),
                }
            }
            assert_eq!(acknowledged, asked);
        }
    }
}
