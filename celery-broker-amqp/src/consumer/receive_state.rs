//! The server's consumers and what they have pushed.

use std::collections::VecDeque;
use std::pin::Pin;

use celery_runtime::Delivery;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use lapin::types::ShortString;

/// The server's consumers and the deliveries that were not handed out yet.
#[derive(Default)]
pub(super) struct ReceiveState {
    /// The deliveries of all consumers.
    pub(super) streams: SelectAll<ConsumerStream>,
    /// The consumer tags, with the indexes of their sources.
    pub(super) consumers: Vec<(usize, ShortString)>,
    /// The prefetch of each consumer, or 0 if there is none or only those that keep
    /// their surplus.
    pub(super) prefetch: u16,
    /// Deliveries that were received and not handed out yet.
    pub(super) buffer: VecDeque<Delivery>,
    /// The index of the source that the next `basic.get` fetches from.
    pub(super) next_source: usize,
}

impl ReceiveState {
    pub(super) fn is_consuming(&self, source: usize) -> bool {
        self.consumers.iter().any(|(index, _)| *index == source)
    }
}

/// The deliveries of one consumer, and then its end.
pub(super) type ConsumerStream = Pin<Box<dyn Stream<Item = ConsumerEvent> + Send>>;

/// A delivery or the end of a consumer, with the index of its source.
pub(super) enum ConsumerEvent {
    Delivery(usize, Box<lapin::message::Delivery>),
    /// The consumer ended: cancelled, or closed with an error.
    Ended(usize, Option<lapin::Error>),
}

/// Converts a consumer of lapin.
pub(super) fn consumer_stream(source: usize, consumer: lapin::Consumer) -> ConsumerStream {
    let deliveries = consumer.map(move |pushed| match pushed {
        Ok(delivery) => ConsumerEvent::Delivery(source, Box::new(delivery)),
        Err(error) => ConsumerEvent::Ended(source, Some(error)),
    });
    let end = stream::once(async move { ConsumerEvent::Ended(source, None) });
    Box::pin(deliveries.chain(end))
}
