//! Tests with servers that are killed, paused, restarted or out of memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use celery_broker_amqp::AmqpBroker;
use celery_runtime::{
    Broker, ConsumeOptions, Consumer, Exchange, Mailbox, Queue, ServiceErrorKind, Settlement,
};
use futures_util::future::join_all;
use test_servers::RabbitServer;

use crate::support::{
    TIMEOUT, ack_all, all, block_publishing, blocking, broker_at, consumer, id, ids, numbers,
    publish_one, receive, receive_one, send, set_memory_alarm, settle, sorted, to, to_declared,
    wait_until, within,
};

/// Starts a server for one test, which may break it.
fn private_server() -> RabbitServer {
    blocking(RabbitServer::start)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn killed_server_loses_no_message() {
    const COUNT: usize = 400;
    let server = private_server();
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    let sending = tokio::spawn(publish_until_sent(broker.clone(), queue.clone(), COUNT));
    let mut done = BTreeSet::new();
    let mut kills = 0;
    while done.len() < COUNT {
        let options = ConsumeOptions::new(vec![queue.clone()], 8);
        let made = async {
            broker.declare(&queue).await?;
            broker.consume(&options).await
        };
        match within("consume", made).await {
            Ok(consumer) => {
                consume_until_broken(&server, &*consumer, &mut done, &mut kills, COUNT).await
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    within("all are published", sending).await.unwrap();
    assert_eq!(kills, 2);
    assert_eq!(done, numbers(0..COUNT).into_iter().collect());
}

/// Consumes until the connection breaks or everything is acknowledged, and kills
/// the server twice.
async fn consume_until_broken(
    server: &RabbitServer,
    consumer: &dyn Consumer,
    done: &mut BTreeSet<String>,
    kills: &mut usize,
    count: usize,
) {
    while done.len() < count {
        let taken = match within("receive", consumer.receive(7)).await {
            Ok(taken) => taken,
            Err(error) => return assert!(error.is_transient(), "{error}"),
        };
        if *kills < 2 && done.len() > (count / 3) * *kills + 40 {
            *kills += 1;
            blocking(|| {
                server.kill();
                server.restart();
            });
        }
        for delivery in taken {
            let settled = [Settlement::Ack(delivery.tag.clone())];
            if all(within("settle", consumer.settle(&settled)).await).is_ok() {
                done.insert(id(&delivery));
            }
        }
    }
}

async fn publish_until_sent(broker: AmqpBroker, queue: Queue, count: usize) {
    let queue = Arc::new(queue);
    for number in 0..count {
        while let Err(error) = publish_one(&broker, to_declared(&queue, &number.to_string())).await
        {
            assert!(error.is_transient(), "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn closed_connection_is_reported_and_replaced() {
    let server = private_server();
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    let mut events = broker
        .subscribe(&Mailbox::of(Exchange::topic("e"), "#"))
        .await
        .unwrap();
    for round in 0..3 {
        let consumer = consumer(&broker, &[&queue], 4).await;
        publish_one(&broker, to("q", &round.to_string()))
            .await
            .unwrap();
        let held = receive_one(&*consumer).await;
        blocking(|| server.control(&["close_all_connections", "maintenance"]));
        let error = within("the connection is reported as lost", consumer.receive(1))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Disconnected, "{error}");
        assert!(error.to_string().contains("maintenance"), "{error}");
        let late = [Settlement::Ack(held.tag)];
        let error = all(within("settle", consumer.settle(&late)).await).unwrap_err();
        assert!(error.is_transient(), "{error}");
        // The closed connection for publishing is replaced before its next use.
        publish_one(&broker, to("q", "again")).await.unwrap();
        broker.purge(&queue).await.unwrap();
    }
    let error = within("the connection is reported as lost", events.next())
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// RabbitMQ stops reading from connections that publish. Everything else works.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn memory_alarm_blocks_publishing_and_is_reported() {
    let server = private_server();
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    send(&broker, &queue, &numbers(0..20)).await;
    let consumer = consumer(&broker, &[&queue], 10).await;
    assert_eq!(broker.blocked_reason(), None);
    set_memory_alarm(&server, true).await;

    let sending = {
        let broker = broker.clone();
        tokio::spawn(async move { publish_one(&broker, to("q", "late")).await })
    };
    wait_until("the reason is known", async || {
        broker.blocked_reason().is_some()
    })
    .await;
    let blocked_reason = broker.blocked_reason().unwrap();
    assert!(blocked_reason.contains("memory"), "{blocked_reason}");
    // Calls that are cancelled meanwhile.
    for _ in 0..40 {
        let publication = [to("q", "cancelled")];
        let sent =
            tokio::time::timeout(Duration::from_millis(20), broker.publish(&publication)).await;
        assert!(sent.is_err(), "{sent:?}");
    }
    // The reason stays known while other calls use the connection.
    let busy: Vec<_> = (0..16)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    let publication = [to("q", "cancelled")];
                    let time = Duration::from_millis(1);
                    let _ = tokio::time::timeout(time, broker.publish(&publication)).await;
                }
            })
        })
        .collect();
    let mut unknown = 0;
    while !busy.iter().all(tokio::task::JoinHandle::is_finished) {
        unknown += usize::from(broker.blocked_reason().is_none());
        tokio::task::yield_now().await;
    }
    // Consumers receive and settle.
    let taken = receive(&*consumer, 10).await;
    let acked = tokio::time::timeout(Duration::from_secs(2), async {
        ack_all(&*consumer, &taken).await;
        receive(&*consumer, 10).await
    });
    let rest = acked.await.expect("consumers work without memory");
    assert_eq!(ids(&rest), numbers(10..20));
    assert!(!sending.is_finished());

    set_memory_alarm(&server, false).await;
    within("it is published", sending).await.unwrap().unwrap();
    wait_until("publishing is unblocked", async || {
        broker.blocked_reason().is_none()
    })
    .await;
    ack_all(&*consumer, &rest).await;
    publish_one(&broker, to("q", "after")).await.unwrap();
    let after = receive_until(&*consumer, "after").await;
    println!("{} messages of cancelled calls arrived", after.len() - 2);
    wait_until("no channel is left", async || channels(&server) <= 18).await;
    assert_eq!(sorted(&server, &["list_connections", "pid"]).len(), 2);
    assert_eq!(unknown, 0, "how often the reason was unknown");
}

/// A worker that has lost its consumer can start a new one while RabbitMQ blocks
/// publishing, because only consuming frees the server's memory.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn consumer_starts_during_memory_alarm() {
    let server = private_server();
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    send(&broker, &queue, &["1"]).await;
    set_memory_alarm(&server, true).await;
    block_publishing(&broker).await;

    let made = tokio::time::timeout(Duration::from_secs(4), consumer(&broker, &[&queue], 4)).await;

    let consumer = made.expect("a consumer without memory");
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    set_memory_alarm(&server, false).await;
}

/// A message that cannot be deferred during the alarm must not delay the
/// acknowledgements of its batch, and is published once, however often it is tried.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn defer_during_memory_alarm_delays_no_ack_and_is_not_duplicated() {
    let server = private_server();
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    send(&broker, &queue, &["warm", "park", "ack"]).await;
    let consumer = consumer(&broker, &[&queue], 10).await;
    let taken = receive(&*consumer, 3).await;
    // Opens the maximum number of channels for publishing.
    let others = Queue::new("others");
    within("declare", broker.declare(&others)).await.unwrap();
    let posts = (0..32).map(|_| publish_one(&broker, to("others", "1")));
    for posted in join_all(posts).await {
        posted.unwrap();
    }
    let later = |seconds| SystemTime::now() + Duration::from_secs(seconds);
    settle(
        &*consumer,
        &[Settlement::Defer(taken[0].tag.clone(), later(3_600))],
    )
    .await;
    set_memory_alarm(&server, true).await;
    block_publishing(&broker).await;

    // A worker settles with a timeout, and repeats the call.
    let both = [
        Settlement::Defer(taken[1].tag.clone(), later(3_600)),
        Settlement::Ack(taken[2].tag.clone()),
    ];
    for _ in 0..5 {
        let settled =
            tokio::time::timeout(Duration::from_millis(500), consumer.settle(&both)).await;
        assert!(settled.is_err(), "{settled:?}");
    }
    let held = || sorted(&server, &["list_queues", "name", "messages_unacknowledged"]);
    let acked = held().contains(&vec!["q".to_owned(), "1".to_owned()]);

    set_memory_alarm(&server, false).await;
    wait_until("it is deferred", async || {
        all(consumer.settle(&both).await).is_ok()
    })
    .await;
    wait_until("nothing is held", async || {
        held().contains(&vec!["q".to_owned(), "0".to_owned()])
    })
    .await;
    wait_until("all confirmed", async || channels(&server) <= 18).await;
    let deferred = broker
        .depth(&Queue::new("celery_delayed_11"))
        .await
        .unwrap();
    // One was deferred before, and one was tried six times.
    let outcome = if acked { "written" } else { "delayed" };
    assert_eq!(
        (outcome, deferred),
        ("written", 2),
        "the acknowledgement, and the number of deferred messages"
    );
}

fn channels(server: &RabbitServer) -> usize {
    sorted(server, &["list_channels", "pid"]).len()
}

/// Receives and acknowledges until a message with this id arrives.
async fn receive_until(consumer: &dyn Consumer, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|id| id != last) {
        let one = receive_one(consumer).await;
        all.push(id(&one));
        ack_all(consumer, &[one]).await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(unix)]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn paused_server_times_out_and_is_used_again_after_resume() {
    /// Twice the default response timeout, for a busy machine.
    const MAX_RESPONSE_TIME: Duration = Duration::from_secs(10);
    let server = private_server();
    let broker = broker_at(&format!("{}?heartbeat=2", server.url()));
    let queue = Queue::new("q");
    let first = consumer(&broker, &[&queue], 4).await;
    publish_one(&broker, to("q", "1")).await.unwrap();
    let held = receive_one(&*first).await;
    let waiting = {
        let first = Arc::clone(&first);
        tokio::spawn(async move { first.receive(1).await })
    };
    server.pause();

    let options = ConsumeOptions::new(vec![queue.clone()], 1);
    let other = Queue::new("other");
    let exchange = Exchange::topic("e");
    let paused = Instant::now();
    while paused.elapsed() < pause_duration() {
        let started = Instant::now();
        let mailbox = Mailbox::of(exchange.clone(), "#");
        let (declared, depth, purged, consumed, subscribed, sent) = tokio::join!(
            broker.declare(&other),
            broker.depth(&queue),
            broker.purge(&other),
            broker.consume(&options),
            broker.subscribe(&mailbox),
            publish_one(&broker, to("q", "2")),
        );
        let errors = [
            declared.unwrap_err(),
            depth.unwrap_err(),
            purged.unwrap_err(),
            consumed.map(drop).unwrap_err(),
            subscribed.map(drop).unwrap_err(),
            sent.unwrap_err(),
        ];
        for error in &errors {
            assert!(error.is_transient(), "{error}");
        }
        assert!(
            started.elapsed() < MAX_RESPONSE_TIME,
            "{:?}: {errors:?}",
            started.elapsed()
        );
    }
    let error = within("the consumer notices", waiting)
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    let settled = within("settle", first.settle(&[Settlement::Ack(held.tag)])).await;
    let error = all(settled).unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.resume();

    let resumed = Instant::now();
    drop(first);
    let second = loop {
        match broker.consume(&options).await {
            Ok(consumer) => break consumer,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        assert!(resumed.elapsed() < TIMEOUT);
    };
    // A publication that was written during the pause may arrive before the server
    // notices that the first connection is gone.
    let mut back = receive_one(&*second).await;
    while id(&back) == "2" {
        ack_all(&*second, &[back]).await;
        back = receive_one(&*second).await;
    }
    println!(
        "the first message arrived {:?} after the server was resumed",
        resumed.elapsed()
    );
    assert_eq!(id(&back), "1");
    assert!(back.redelivered);
    publish_one(&broker, to("q", "3")).await.unwrap();
}

/// Returns eight seconds, or a minute if `CELERY_TEST_LONG` is set.
fn pause_duration() -> Duration {
    match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(8),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn consumer_timeout_is_an_error_with_a_remedy() {
    let server = private_server();
    blocking(|| {
        for (name, milliseconds) in [("consumer_timeout", 1000), ("channel_tick_interval", 1000)] {
            let set = format!("application:set_env(rabbit, {name}, {milliseconds}).");
            server.control(&["eval", &set]);
        }
    });
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    send(&broker, &queue, &["1"]).await;
    let first = consumer(&broker, &[&queue], 4).await;
    let held = receive_one(&*first).await;
    let error = within("the connection is reported as lost", first.receive(1))
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(
        error.to_string().contains("raise consumer_timeout"),
        "{error}"
    );
    let settled = within("settle", first.settle(&[Settlement::Ack(held.tag)])).await;
    let error = all(settled).unwrap_err();
    assert!(error.is_transient(), "{error}");
    drop(first);
    let second = consumer(&broker, &[&queue], 4).await;
    let again = receive_one(&*second).await;
    assert!(again.redelivered);
    ack_all(&*second, &[again]).await;
    assert_eq!(sorted(&server, &["list_connections", "pid"]).len(), 2);
}
