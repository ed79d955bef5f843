//! Tests of consumers without a prefetch on many queues: what the server pushes
//! beyond the requested number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::Value;
use celery_runtime::{Broker, Consumer, Delivery, Queue, Settlement};
use tokio::sync::mpsc;

use crate::support::{
    TestVhost, ack_all, consumer, id, ids, publish_one, receive, receive_one, settle, to,
    wait_until, within,
};

const QUEUES: usize = 16;
const CONSUMERS: usize = 10;
const BURSTS: usize = 30;

/// The time of a simulated task.
const TASK_TIME: Duration = Duration::from_millis(5);

fn quorum_queues(delivery_limit: i64) -> Vec<Queue> {
    let queue = |number| {
        Queue::new(format!("q{number}"))
            .quorum()
            .argument("x-delivery-limit", Value::Int(delivery_limit))
    };
    (0..QUEUES).map(queue).collect()
}

/// Runs tasks one after the other, and reports each.
async fn work(consumer: Arc<dyn Consumer>, done: mpsc::UnboundedSender<Delivery>) {
    loop {
        let taken = consumer.receive(1).await.unwrap();
        let [delivery] = &taken[..] else {
            return;
        };
        tokio::time::sleep(TASK_TIME).await;
        settle(&*consumer, &[Settlement::Ack(delivery.tag.clone())]).await;
        let _ = done.send(delivery.clone());
    }
}

/// Ten idle consumers wait on every queue. The server returns what they do not
/// want, and counts that as a delivery.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn bursts_over_many_quorum_queues_reach_no_delivery_limit() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = quorum_queues(20);
    let all_queues: Vec<_> = queues.iter().collect();
    let (done, mut results) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for _ in 0..CONSUMERS {
        let consumer = consumer(&broker, &all_queues, 0).await;
        let working = tokio::spawn(work(Arc::clone(&consumer), done.clone()));
        workers.push((consumer, working));
    }
    let mut seen = BTreeSet::new();
    let mut highest_count = 0;
    for burst in 0..BURSTS {
        let name = |queue: &Queue| format!("{burst}-{}", queue.name);
        let batch: Vec<_> = queues.iter().map(|one| to(&one.name, &name(one))).collect();
        for sent in within("publish", broker.publish(&batch)).await {
            sent.unwrap();
        }
        while seen.len() < (burst + 1) * QUEUES {
            let delivery = within("every task runs", results.recv()).await.unwrap();
            highest_count = highest_count.max(delivery.delivery_count.unwrap_or(0));
            seen.insert(id(&delivery));
        }
    }
    println!("the highest delivery count is {highest_count}");
    // The server returns and counts messages that cross a `basic.cancel`, too.
    assert!(highest_count < 12, "{highest_count}");
    for (consumer, working) in workers {
        consumer.interrupt();
        within("the loop ends", working).await.unwrap();
    }
    for queue in &queues {
        wait_until("nothing is left", async || {
            test_vhost.counts(&queue.name) == (0, 0)
        })
        .await;
    }
}

/// Each return counts, so a queue with a small limit gets nothing back from a running
/// worker.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn surplus_of_queue_with_small_delivery_limit_is_kept_until_interrupt() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = quorum_queues(1);
    let all_queues: Vec<_> = queues.iter().collect();
    let first = consumer(&broker, &all_queues, 0).await;
    let waiting = {
        let first = Arc::clone(&first);
        tokio::spawn(async move { first.receive(1).await })
    };
    wait_until("the consumer waits", async || {
        let waiting = test_vhost.consumers(&["queue_name"]);
        waiting.len() == QUEUES
    })
    .await;
    let batch: Vec<_> = queues.iter().map(|one| to(&one.name, &one.name)).collect();
    for sent in within("publish", broker.publish(&batch)).await {
        sent.unwrap();
    }
    let mut taken = within("receive", waiting).await.unwrap().unwrap();
    // Half of them are received in turn, kept or fetched.
    while taken.len() < QUEUES / 2 {
        taken.push(receive_one(&*first).await);
    }
    let counted = |one: &Delivery| one.redelivered || one.delivery_count.is_some();
    assert!(!taken.iter().any(counted), "{taken:?}");
    ack_all(&*first, &taken).await;

    first.interrupt();

    let second = consumer(&broker, &all_queues, 0).await;
    let rest = receive(&*second, QUEUES - taken.len()).await;
    assert!(ids(&rest).iter().all(|id| !ids(&taken).contains(id)));
}

/// Nothing is polled: the server pushes to a waiting consumer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_for_idle_consumer_is_pushed_from_any_queue() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues: Vec<_> = ["classic", "other"].map(Queue::new).into_iter().collect();
    let quorum = quorum_queues(20);
    let all_queues: Vec<_> = queues.iter().chain(&quorum).collect();
    let consumer = consumer(&broker, &all_queues, 0).await;
    for queue in &all_queues {
        let waiting = {
            let consumer = Arc::clone(&consumer);
            tokio::spawn(async move { consumer.receive(1).await })
        };
        wait_until("the consumer waits on every queue", async || {
            let waiting = test_vhost.consumers(&["queue_name"]);
            waiting.len() == all_queues.len()
        })
        .await;
        publish_one(&broker, to(&queue.name, &queue.name))
            .await
            .unwrap();
        let taken = within("push", waiting).await.unwrap().unwrap();
        assert_eq!(ids(&taken), [queue.name.as_str()]);
        ack_all(&*consumer, &taken).await;
    }
}
