//! Sending many tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use celery::{AsyncResult, Client};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{RECORD, TIMEOUT, within};
use crate::tasks::Number::{self, Int};
use crate::tasks::{ADD, SLEEP};

/// Sends `count` tasks that sleep for `seconds` each.
pub(crate) async fn send_sleeps(
    client: &Client,
    count: usize,
    seconds: f64,
) -> Vec<AsyncResult<f64>> {
    let calls = (0..count).map(|_| SLEEP.s((seconds,)));
    let sent = client.apply_all(calls).await;
    sent.into_iter().map(Result::unwrap).collect()
}

/// Sends `count` additions of 1 to the numbers from 0.
pub(crate) async fn send_adds(client: &Client, count: i64) -> Vec<AsyncResult<Number>> {
    let calls = (0..count).map(|number| ADD.s((Int(number), Int(1))));
    let sent = client.apply_all(calls).await;
    sent.into_iter().map(Result::unwrap).collect()
}

/// Waits for the sums of [`send_adds`].
pub(crate) async fn assert_sums(adds: &[AsyncResult<Number>]) {
    for (number, add) in (0..).zip(adds) {
        let sum = add.get_timeout(TIMEOUT).await.unwrap();
        assert_eq!(sum, Int(number + 1));
    }
}

/// Returns the number of results that are ready.
pub(crate) async fn count_done<R>(results: &[AsyncResult<R>]) -> usize {
    let mut done = 0;
    for result in results {
        done += usize::from(result.ready().await.unwrap());
    }
    done
}

/// The results of the numbers that the broker has accepted.
pub(crate) type Accepted = BTreeMap<i64, AsyncResult<i64>>;

/// Sends [`RECORD`] with one number after the other, through errors, until it
/// is stopped.
pub(crate) struct Producer {
    stop: oneshot::Sender<()>,
    accepted: JoinHandle<Accepted>,
}

impl Producer {
    pub(crate) fn start(client: Client) -> Self {
        let (stop, stopped) = oneshot::channel();
        let accepted = tokio::spawn(produce(client, stopped));
        Self { stop, accepted }
    }

    /// Stops sending and returns what the broker has accepted.
    pub(crate) async fn stop(self) -> Accepted {
        self.stop.send(()).unwrap();
        within("the producer stops", self.accepted).await.unwrap()
    }
}

async fn produce(client: Client, mut stop: oneshot::Receiver<()>) -> Accepted {
    let mut accepted = Accepted::new();
    let mut number = 0;
    while stop.try_recv().is_err() {
        number += 1;
        // A send that fails may have reached the broker; it is not counted.
        if let Ok(result) = client.send(RECORD, (number, 5)).await {
            accepted.insert(number, result);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    accepted
}
