//! Slots for running tasks, and the deliveries that wait for one: [`Slots`]. Pure.

use std::collections::VecDeque;

/// The slots of a worker: as many tasks run at the same time. `K` is the key of a
/// delivery.
#[derive(Debug)]
pub(crate) struct Slots<K> {
    waiting: VecDeque<K>,
    concurrency: usize,
    /// More than `concurrency` right after a reduction.
    busy: usize,
    /// Threads for blocking tasks: one for each slot, and those in use that are left
    /// from a reduction.
    threads: usize,
    /// Maximum and minimum of `concurrency` with autoscaling.
    autoscale: Option<(usize, usize)>,
}

/// How the number of threads for blocking tasks changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ThreadChange {
    Grow(usize),
    /// Only free threads can be removed; the rest goes to [`Slots::keep_threads`].
    Shrink(usize),
}

impl<K> Slots<K> {
    /// `autoscale` is the maximum and the minimum of the concurrency.
    pub(crate) fn new(concurrency: usize, autoscale: Option<(usize, usize)>) -> Self {
        Self {
            waiting: VecDeque::new(),
            concurrency,
            busy: 0,
            threads: concurrency,
            autoscale,
        }
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Returns the highest concurrency that autoscaling may reach.
    pub(crate) fn max_concurrency(&self) -> usize {
        self.autoscale.map_or(self.concurrency, |(max, _)| max)
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    pub(crate) fn autoscale(&self) -> Option<(usize, usize)> {
        self.autoscale
    }

    /// Queues a delivery for a slot.
    pub(crate) fn enqueue(&mut self, key: K) {
        self.waiting.push_back(key);
    }

    /// Assigns a free slot to the delivery that has waited longest, and returns its key.
    ///
    /// `storing` is the number of ended tasks whose result is not stored yet. As in Celery, a
    /// worker with one slot stores a result before it starts the next task, so that its tasks take
    /// effect in order.
    pub(crate) fn grant(&mut self, storing: usize) -> Option<K> {
        if self.busy >= self.concurrency || self.concurrency == 1 && storing > 0 {
            return None;
        }
        let key = self.waiting.pop_front()?;
        self.busy += 1;
        Some(key)
    }

    /// Frees a slot.
    pub(crate) fn release(&mut self) {
        self.busy = self.busy.saturating_sub(1);
    }

    /// Changes the concurrency. Returns the change of the threads, or `None` if the
    /// concurrency is the same.
    pub(crate) fn resize(&mut self, concurrency: usize) -> Option<ThreadChange> {
        if concurrency == self.concurrency {
            return None;
        }
        let threads = std::mem::replace(&mut self.threads, concurrency);
        self.concurrency = concurrency;
        Some(if concurrency > threads {
            ThreadChange::Grow(concurrency - threads)
        } else {
            ThreadChange::Shrink(threads - concurrency)
        })
    }

    /// Records threads that could not be removed. They finish their task, and their
    /// slots are not reused.
    pub(crate) fn keep_threads(&mut self, count: usize) {
        self.threads += count;
    }

    /// Sets the range of autoscaling. Returns the concurrency within it.
    pub(crate) fn set_autoscale(&mut self, max: usize, min: usize) -> usize {
        self.autoscale = Some((max, min));
        self.concurrency.clamp(min, max)
    }

    /// Returns the concurrency to grow to for this number of pending deliveries, if
    /// autoscaling allows more.
    pub(crate) fn scale_up(&self, pending: usize) -> Option<usize> {
        let (max, _) = self.autoscale?;
        (pending > self.concurrency && self.concurrency < max).then(|| pending.min(max))
    }

    /// Returns the concurrency to shrink to for this number of pending deliveries, if
    /// autoscaling allows less.
    pub(crate) fn scale_down(&self, pending: usize) -> Option<usize> {
        let (_, min) = self.autoscale?;
        (pending < self.concurrency).then(|| pending.max(min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_are_granted_in_order_of_arrival() {
        let mut slots = Slots::new(2, None);
        for key in ["a", "b", "c"] {
            slots.enqueue(key);
        }
        assert_eq!([slots.grant(0), slots.grant(0)], [Some("a"), Some("b")]);
        assert_eq!((slots.grant(0), slots.busy()), (None, 2));
        slots.release();
        assert_eq!((slots.grant(0), slots.grant(0)), (Some("c"), None));
    }

    #[test]
    fn reduced_slots_are_granted_again_once_enough_are_free() {
        let mut slots = Slots::new(2, None);
        for key in 1..=3 {
            slots.enqueue(key);
        }
        while slots.grant(0).is_some() {}
        slots.resize(1);
        slots.release();
        assert_eq!(slots.grant(0), None);
        slots.release();
        assert_eq!(slots.grant(0), Some(3));
    }

    #[test]
    fn single_slot_is_granted_after_results_are_stored() {
        let mut slots = Slots::new(1, None);
        slots.enqueue("a");
        slots.enqueue("b");
        assert_eq!((slots.grant(1), slots.grant(0)), (None, Some("a")));
        slots.resize(2);
        assert_eq!(slots.grant(1), Some("b"));
    }

    #[test]
    fn kept_threads_count_as_threads_of_later_slots() {
        let mut slots = Slots::<()>::new(4, None);
        assert_eq!(slots.resize(4), None);
        assert_eq!(slots.resize(1), Some(ThreadChange::Shrink(3)));
        slots.keep_threads(2);
        assert_eq!(slots.resize(2), Some(ThreadChange::Shrink(1)));
        slots.keep_threads(1);
        assert_eq!(slots.resize(5), Some(ThreadChange::Grow(2)));
    }

    #[test]
    fn concurrency_follows_pending_deliveries_within_range() {
        let slots = Slots::<()>::new(3, Some((5, 2)));
        assert_eq!(slots.max_concurrency(), 5);
        assert_eq!(
            [0, 3, 4, 9].map(|pending| slots.scale_up(pending)),
            [None, None, Some(4), Some(5)]
        );
        assert_eq!(
            [0, 2, 3, 9].map(|pending| slots.scale_down(pending)),
            [Some(2), Some(2), None, None]
        );
        let fixed = Slots::<()>::new(3, None);
        assert_eq!((fixed.scale_up(9), fixed.scale_down(0)), (None, None));
    }

    #[test]
    fn changed_range_moves_concurrency_into_it() {
        let mut slots = Slots::<()>::new(3, Some((5, 2)));
        assert_eq!(slots.set_autoscale(10, 4), 4);
        assert_eq!(slots.set_autoscale(2, 1), 2);
        assert_eq!(slots.autoscale(), Some((2, 1)));
    }
}
