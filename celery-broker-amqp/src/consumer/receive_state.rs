//! The server's consumers and what they have pushed.

use std::collections::VecDeque;
use std::pin::Pin;

use celery_runtime::Delivery;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use lapin::types::ShortString;

/// What the server streams.
#[derive(Default)]
pub(super) struct ReceiveState {
    pub(super) streams: SelectAll<ConsumerStream>,
    /// The server's consumers, and the credit that each has.
    pub(super) consumers: Vec<ShortString>,
    pub(super) credit: u16,
    /// Taken from the server and not handed out.
    pub(super) buffer: VecDeque<Delivery>,
    /// The queue to look at first.
    pub(super) next_queue: usize,
}

pub(super) type ConsumerStream = Pin<Box<dyn Stream<Item = ConsumerEvent> + Send>>;

/// A delivery of a queue, or the end of its consumer.
pub(super) enum ConsumerEvent {
    Delivery(usize, Box<lapin::message::Delivery>),
    Ended(usize, Option<lapin::Error>),
}

pub(super) fn consumer_stream(queue_index: usize, consumer: lapin::Consumer) -> ConsumerStream {
    let deliveries = consumer.map(move |pushed| match pushed {
        Ok(delivery) => ConsumerEvent::Delivery(queue_index, Box::new(delivery)),
        Err(error) => ConsumerEvent::Ended(queue_index, Some(error)),
    });
    let end = stream::once(async move { ConsumerEvent::Ended(queue_index, None) });
    Box::pin(deliveries.chain(end))
}
