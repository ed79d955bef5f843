//! Tasks in numbers.

use celery::{AsyncResult, Client};

use super::TIMEOUT;
use crate::tasks::Number::{self, Int};
use crate::tasks::{ADD, SLEEP};

/// Sends calls that sleep this long each; all are acknowledged.
pub(crate) async fn send_sleeps(
    client: &Client,
    count: usize,
    seconds: f64,
) -> Vec<AsyncResult<f64>> {
    let calls = (0..count).map(|_| SLEEP.s((seconds,)));
    let sent = client.apply_all(calls).await;
    sent.into_iter().map(Result::unwrap).collect()
}

/// Sends additions of 1 to the numbers from 0 on.
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

pub(crate) async fn count_done<R>(results: &[AsyncResult<R>]) -> usize {
    let mut done = 0;
    for result in results {
        done += usize::from(result.ready().await.unwrap());
    }
    done
}
