//! The deliveries in flight, their timers and their counts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use crate::worker::delivery::event::Action;
use crate::worker::delivery::in_flight::{DeliveryKey, InFlight};

/// The deliveries that a worker holds.
#[derive(Default)]
pub(crate) struct Deliveries {
    pub(crate) in_flight: InFlight,
    /// Deliveries whose task has not ended.
    pub(crate) pending: usize,
    /// Pending deliveries that are not acknowledged.
    pub(crate) unsettled: usize,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// A buffer that is reused for each event.
    pub(crate) actions: Vec<Action>,
}
