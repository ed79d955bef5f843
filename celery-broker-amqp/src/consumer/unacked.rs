//! The deliveries of a channel that are not settled yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;

/// The unsettled deliveries of one channel, by delivery tag.
#[derive(Debug, Default)]
pub(super) struct UnackedDeliveries {
    deliveries: BTreeMap<u64, UnackedDelivery>,
    /// Every tag up to this one has been inserted. Tags count from 1 for the whole
    /// channel, but the deliveries of one queue may be read before those of
    /// another.
    contiguous: u64,
    /// The tags after `contiguous` that have been inserted.
    out_of_order: BTreeSet<u64>,
}

/// A delivery as it was received, kept so that it can be published again.
#[derive(Clone, Debug)]
pub(super) struct UnackedDelivery {
    /// The index of its queue among the consumer's sources.
    pub(super) source: usize,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) redelivered: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// A `basic.ack` frame to send, with the tags that it acknowledges in ascending
/// order. With several tags it acknowledges the last one and all before it
/// (`multiple`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ack(pub(super) Vec<u64>);

impl UnackedDeliveries {
    pub(super) fn insert(&mut self, tag: u64, delivery: UnackedDelivery) {
        self.deliveries.insert(tag, delivery);
        self.out_of_order.insert(tag);
        while self.out_of_order.remove(&(self.contiguous + 1)) {
            self.contiguous += 1;
        }
    }

    pub(super) fn get(&self, tag: u64) -> Option<&UnackedDelivery> {
        self.deliveries.get(&tag)
    }

    pub(super) fn contains(&self, tag: u64) -> bool {
        self.deliveries.contains_key(&tag)
    }

    /// Removes a delivery, and returns whether it was there.
    pub(super) fn remove(&mut self, tag: u64) -> bool {
        self.deliveries.remove(&tag).is_some()
    }

    /// Returns the fewest frames that acknowledge exactly `tags`: one for all tags
    /// before the oldest delivery that stays unsettled or may not have been read
    /// yet, and one for each other tag.
    pub(super) fn acks(&self, mut tags: Vec<u64>) -> Vec<Ack> {
        tags.sort_unstable();
        tags.dedup();
        tags.retain(|tag| self.deliveries.contains_key(tag));
        let is_kept = |tag: &&u64| tags.binary_search(tag).is_err();
        let oldest = self.deliveries.keys().find(is_kept).copied();
        let oldest = oldest.unwrap_or(u64::MAX).min(self.contiguous + 1);
        let count = tags.partition_point(|tag| *tag < oldest);
        let (first, rest) = tags.split_at(count);
        let first = (!first.is_empty()).then(|| Ack(first.to_vec()));
        let rest = rest.iter().map(|tag| Ack(vec![*tag]));
        first.into_iter().chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unacked(tags: &[u64]) -> UnackedDeliveries {
        let mut unacked = UnackedDeliveries::default();
        for tag in tags {
            let delivery = UnackedDelivery {
                source: 0,
                exchange: "".into(),
                routing_key: "q".into(),
                redelivered: false,
                properties: BasicProperties::default(),
                body: Bytes::new(),
            };
            unacked.insert(*tag, delivery);
        }
        unacked
    }

    #[test]
    fn tags_before_the_oldest_unsettled_share_one_ack() {
        for (held, tags, expected) in [
            (&[1, 2, 3][..], &[3, 1, 2][..], &[&[1, 2, 3][..]][..]),
            (&[1, 2, 3, 4], &[1, 2, 4], &[&[1, 2], &[4]]),
            (&[1, 2, 3], &[2, 3], &[&[2], &[3]]),
            (&[1, 2], &[1], &[&[1]]),
            (&[5, 9], &[5, 9], &[&[5], &[9]]),
            (&[2, 1, 4], &[1, 2, 4], &[&[1, 2], &[4]]),
            (&[1], &[7], &[]),
        ] {
            let expected: Vec<_> = expected.iter().map(|tags| Ack(tags.to_vec())).collect();
            assert_eq!(
                unacked(held).acks(tags.to_vec()),
                expected,
                "{held:?} {tags:?}"
            );
        }
    }

    #[test]
    fn acks_cover_exactly_the_given_tags() {
        for mask in 0..1u32 << 8 {
            let held: Vec<u64> = (1..=8).collect();
            let requested: Vec<u64> = held
                .iter()
                .copied()
                .filter(|tag| mask >> (tag - 1) & 1 == 1)
                .collect();
            let mut acknowledged: Vec<u64> = Vec::new();
            for Ack(tags) in unacked(&held).acks(requested.clone()) {
                match tags[..] {
                    [one] => acknowledged.push(one),
                    [.., last] => acknowledged.extend(held.iter().filter(|tag| **tag <= last)),
                    [] => panic!("an acknowledgement of nothing"),
                }
            }
            assert_eq!(acknowledged, requested);
        }
    }
}
