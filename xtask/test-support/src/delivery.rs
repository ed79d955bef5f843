//! Receiving from a broker: [`receive`], and the ids of deliveries.

use celery_protocol::Message;
use celery_runtime::{Consumer, Content, Delivery};

use super::within;

/// Receives exactly `count` deliveries.
///
/// # Panics
///
/// Panics when the consumer fails, or when the deliveries do not arrive in time.
pub async fn receive(consumer: &dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        let more = within("receive", consumer.receive(count - received.len())).await;
        received.extend(more.unwrap());
    }
    received
}

/// Receives one delivery; see [`receive`].
///
/// # Panics
///
/// Panics as [`receive`] does.
pub async fn receive_one(consumer: &dyn Consumer) -> Delivery {
    receive(consumer, 1).await.remove(0)
}

/// Returns the task id of a delivery.
///
/// # Panics
///
/// Panics when the message is malformed or is no task.
#[must_use]
pub fn id(delivery: &Delivery) -> String {
    match &delivery.content {
        Content::Message(message) => message_id(message),
        Content::Malformed { error, .. } => panic!("malformed: {error}"),
    }
}

/// Returns the task ids of deliveries; see [`id`].
///
/// # Panics
///
/// Panics as [`id`] does.
#[must_use]
pub fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(id).collect()
}

/// Returns the task id of a message.
///
/// # Panics
///
/// Panics when the message is no task.
#[must_use]
pub fn message_id(message: &Message) -> String {
    let task = message.headers.task().unwrap().expect("a task");
    task.id.into_owned()
}

/// Returns all values of a batch, or its first error.
///
/// # Errors
///
/// The first error of the batch.
pub fn all<T, E>(results: Vec<Result<T, E>>) -> Result<Vec<T>, E> {
    results.into_iter().collect()
}
