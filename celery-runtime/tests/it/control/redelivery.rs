//! Redelivered tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celery_protocol::State;
use celery_runtime::{Broker, ConsumeOptions, Queue, QueueEnd, Settlement, TaskError, Tasks};

use super::{LATE, SLEEP, run_pending, setup_with, start, wait_until};
use crate::support::{Running, Setup, within};

/// Requeues the next message of the queue, which flags it as redelivered.
async fn redeliver(setup: &Setup) {
    let options = ConsumeOptions::new(vec![Queue::new("celery")], 1);
    let consumer = setup.broker.consume(&options).await.unwrap();
    let delivery = consumer.receive(1).await.unwrap().pop().unwrap();
    let requeue = Settlement::Requeue(delivery.tag, QueueEnd::Head);
    let settled = consumer.settle(&[requeue]).await;
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
}

#[tokio::test(start_paused = true)]
async fn redelivered_successful_task_runs_again_unless_deduplicated() {
    for (deduplicates, expected) in [(false, 3), (true, 2)] {
        let setup = setup_with(&[("worker_deduplicate_successful_tasks", deduplicates.into())]);
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let handler = move |seconds: u64| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, TaskError>(seconds) }
        };
        let worker = || setup.app.worker(Tasks::new().with(LATE, handler.clone()));
        let call = || LATE.s((1,)).task_id("same");
        let client = setup.client();

        let first = Running::start(worker());
        let result = client.apply(call()).await.unwrap();
        within(5, result.get()).await.unwrap();
        // A second message is not a redelivery.
        client.apply(call()).await.unwrap();
        run_pending().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        first.stop().await.unwrap();

        client.apply(call()).await.unwrap();
        redeliver(&setup).await;
        let second = Running::start(worker());
        wait_until("it is settled", 5, async || {
            setup.depth("celery").await == 0 && setup.broker.unsettled() == 0
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), expected);
        assert_eq!(result.state().await.unwrap(), State::Success);
        second.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn connection_loss_cancels_late_task_only_if_configured() {
    for (cancels, runs) in [(false, 1), (true, 2)] {
        let name = "worker_cancel_long_running_tasks_on_connection_loss";
        let setup = setup_with(&[(name, cancels.into())]);
        let events = setup.record_events().await;
        let worker = start(&setup, 2);
        let client = setup.client();
        let late = client.send(LATE, (20,)).await.unwrap();
        let early = client.send(SLEEP, (20,)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        setup.broker.faults().go_down();
        tokio::time::sleep(Duration::from_secs(1)).await;
        setup.broker.faults().come_back();
        let again = setup.record_events().await;
        assert_eq!(within(60, late.get()).await.unwrap(), 20);
        assert_eq!(within(60, early.get()).await.unwrap(), 20);
        run_pending().await;
        let started = |kind: &str| kind == "task-started";
        let count = |id: &str| {
            let kinds = events.kinds(id).into_iter().chain(again.kinds(id));
            kinds.filter(|kind| started(kind)).count()
        };
        assert_eq!(count(late.id()), runs);
        assert_eq!(count(early.id()), 1, "its message was acknowledged");
        worker.stop().await.unwrap();
        assert_eq!(setup.depth("celery").await, 0);
    }
}
