//! How many deliveries a worker holds: [`Window`]. Pure.

/// Most deliveries whose task has ended and whose result or acknowledgement is not
/// yet confirmed, beyond which the worker does not receive, unless the window is
/// larger.
///
/// It bounds the backlog of an unreachable backend. If storing a result takes
/// longer than its task, the limit is always reached; a larger one would delay the
/// last result beyond a visibility timeout or a chord's claim, and more tasks
/// would run again after a crash with late acknowledgement.
const MAX_FINISHING: usize = 256;

/// The deliveries that a worker holds, and how many more it has room for.
#[derive(Debug)]
pub(crate) struct Window {
    /// Deliveries for each slot; 0 is without limit.
    multiplier: usize,
    /// Deliveries whose task has not ended.
    pending: usize,
    /// Pending deliveries that are not acknowledged.
    unsettled: usize,
    /// Deliveries whose task runs.
    running: usize,
    /// Deliveries whose task has ended and whose result is not stored.
    storing: usize,
}

/// How a delivery counts in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) is_pending: bool,
    pub(crate) is_unsettled: bool,
    pub(crate) is_running: bool,
    pub(crate) is_storing: bool,
}

impl Window {
    /// `multiplier` is the number of deliveries for each slot; 0 is without limit.
    pub(crate) fn new(multiplier: usize) -> Self {
        Self {
            multiplier,
            pending: 0,
            unsettled: 0,
            running: 0,
            storing: 0,
        }
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    pub(crate) fn running(&self) -> usize {
        self.running
    }

    pub(crate) fn storing(&self) -> usize {
        self.storing
    }

    /// Returns how many deliveries the worker may hold for running and waiting tasks,
    /// at most what AMQP's 16-bit prefetch can express.
    pub(crate) fn size(&self, slots: usize) -> usize {
        match self.multiplier {
            0 => usize::from(u16::MAX),
            multiplier => slots.saturating_mul(multiplier).min(usize::from(u16::MAX)),
        }
    }

    /// Returns the broker's prefetch: none with a multiplier of 1, so that the worker
    /// holds no message that another worker could start at once.
    pub(crate) fn prefetch(&self, slots: usize) -> u16 {
        match self.multiplier {
            1 => 0,
            _ => u16::try_from(self.size(slots)).unwrap_or(u16::MAX),
        }
    }

    /// Returns how many deliveries the worker may receive now. `in_flight` counts also
    /// those whose task has ended.
    pub(crate) fn room(&self, slots: usize, in_flight: usize) -> usize {
        let size = self.size(slots);
        let finishing = in_flight - self.pending;
        if finishing >= MAX_FINISHING.max(size) {
            return 0;
        }
        // With prefetch, an acknowledged running task no longer counts in the
        // broker's window, so its place is already taken by another delivery.
        let held = match self.multiplier {
            1 => self.pending,
            _ => self.unsettled,
        };
        size.saturating_sub(held)
    }

    /// Counts a delivery anew after its state has changed.
    pub(crate) fn changed(&mut self, before: Load, after: Load) {
        self.pending =
            self.pending + usize::from(after.is_pending) - usize::from(before.is_pending);
        self.unsettled =
            self.unsettled + usize::from(after.is_unsettled) - usize::from(before.is_unsettled);
        self.running =
            self.running + usize::from(after.is_running) - usize::from(before.is_running);
        self.storing =
            self.storing + usize::from(after.is_storing) - usize::from(before.is_storing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Load = Load {
        is_pending: false,
        is_unsettled: false,
        is_running: false,
        is_storing: false,
    };
    const WAITING: Load = Load {
        is_pending: true,
        is_unsettled: true,
        is_running: false,
        is_storing: false,
    };
    const ACKNOWLEDGED: Load = Load {
        is_pending: true,
        is_unsettled: false,
        is_running: false,
        is_storing: false,
    };

    fn window(multiplier: usize, waiting: usize, acknowledged: usize) -> Window {
        let mut window = Window::new(multiplier);
        for _ in 0..waiting + acknowledged {
            window.changed(NONE, WAITING);
        }
        for _ in 0..acknowledged {
            window.changed(WAITING, ACKNOWLEDGED);
        }
        window
    }

    #[test]
    fn multiplier_of_one_prefetches_nothing() {
        let prefetch = |multiplier| Window::new(multiplier).prefetch(10);
        assert_eq!([1, 2, 4].map(prefetch), [0, 20, 40]);
        assert_eq!(prefetch(0), u16::MAX);
    }

    #[test]
    fn acknowledged_task_occupies_room_only_without_prefetch() {
        assert_eq!(window(1, 1, 2).room(4, 3), 1);
        assert_eq!(window(2, 1, 2).room(4, 3), 7);
        assert_eq!(window(0, 1, 2).room(4, 3), usize::from(u16::MAX) - 1);
    }

    #[test]
    fn ended_task_leaves_the_window() {
        let mut window = window(1, 2, 1);
        window.changed(ACKNOWLEDGED, NONE);
        window.changed(WAITING, NONE);
        assert_eq!((window.pending(), window.room(4, 3)), (1, 3));
    }

    #[test]
    fn backlog_of_unconfirmed_results_leaves_no_room() {
        let window = window(1, 1, 0);
        assert_eq!(window.room(4, MAX_FINISHING), 3);
        assert_eq!(window.room(4, 1 + MAX_FINISHING), 0);
        assert_eq!(window.room(1_000, 1 + MAX_FINISHING), 999);
        assert_eq!(window.room(1_000, 1_001), 0);
    }
}
