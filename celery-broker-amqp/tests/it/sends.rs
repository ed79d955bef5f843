//! Tests of many concurrent sends, of refusals, and of queues that confirm nothing.

use std::sync::Arc;
use std::time::Duration;

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_runtime::{
    App, Broker, Client, Config, Exchange, Publication, Queue, SendError, ServiceErrorKind, Task,
};
use futures_util::future::join_all;
use lapin::types::AMQPValue;
use test_servers::RabbitServer;

use crate::support::{
    TestVhost, blocking, broker_at, consumer, numbers, publish_one, receive_one, send, table, task,
    to, to_declared, wait_until, within,
};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").queue("new").ignore_result();

fn client_of(broker: &AmqpBroker) -> Client {
    App::new(Arc::new(broker.clone()))
        .with_config(Config::new())
        .client()
}

/// Returns the resident set of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.unwrap().split_whitespace().nth(1);
    size.unwrap().parse().unwrap()
}

/// Runs the test in a process of its own, whose memory no other test takes. Returns
/// whether this is that process.
fn runs_alone(test: &str) -> bool {
    const ALONE: &str = "CELERY_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--include-ignored", "--nocapture"]);
    let output = blocking(|| command.env(ALONE, "1").output().unwrap());
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    print!("{text}");
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn fifty_thousand_concurrent_sends_to_a_new_queue_are_all_sent() {
    const SENDS: i64 = 50_000;
    if !runs_alone("sends::fifty_thousand_concurrent_sends_to_a_new_queue_are_all_sent") {
        return;
    }
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let client = client_of(&broker);
    let one = client.send(ADD, (0, 0));
    println!("a send's future has {} bytes", size_of_val(&one));
    drop(one);
    let before = resident();
    let sending = join_all((0..SENDS).map(|number| client.send(ADD, (number, number))));
    let sent = tokio::time::timeout(Duration::from_secs(120), sending).await;
    let after = resident();

    let failed: Vec<_> = sent.unwrap().into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
    assert_eq!(broker.depth(&Queue::new("new")).await.unwrap(), 50_000);
    let grown = after.saturating_sub(before) / 1024;
    println!("the resident set grew by {grown} MiB");
    assert!(grown <= 200, "{grown} MiB");
    assert!(test_vhost.channels(&["number"]).len() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn concurrent_sends_to_a_new_queue_share_one_declaration() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let raw = test_vhost.raw().await;
    // Existing queues are used as they are.
    raw.declare("old", table(&[("x-max-priority", AMQPValue::LongInt(3))]))
        .await;
    let queues = [Arc::new(Queue::new("new")), Arc::new(Queue::new("old"))];
    let sends = (0..2_000).map(|number| {
        let publication = to_declared(&queues[number % 2], &number.to_string());
        publish_one(&broker, publication)
    });
    for sent in join_all(sends).await {
        sent.unwrap();
    }
    for queue in &queues {
        assert_eq!(broker.depth(queue).await.unwrap(), 1_000, "{}", queue.name);
    }
}

/// Publishes to an exchange that does not exist, to a queue whose declaration is
/// refused, and to a valid queue, many times on one connection.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn refusals_cost_the_valid_sends_nothing() {
    let rounds = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => 10_000,
        None => 300,
    };
    let server = blocking(|| RabbitServer::builder().setting("channel_max", "16").start());
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    send(&broker, &queue, &numbers(0..1)).await;
    let existing = Queue::new("q2").bound_to(Exchange::topic("feeds"), "feed");
    within("declare", broker.declare(&existing)).await.unwrap();
    let other = Arc::new(
        Queue::new("q2")
            .max_priority(3)
            .bound_to(Exchange::topic("feeds"), "feed"),
    );
    for round in 0..rounds {
        let id = round.to_string();
        let nowhere = Publication::to_exchange(task(&id), "nowhere", "key");
        let error = publish_one(&broker, nowhere).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ServiceErrorKind::Unroutable,
            "{round}: {error}"
        );
        assert!(error.to_string().contains("nowhere"), "{round}: {error}");
        if round % 10 == 0 {
            let error = broker.declare(&other).await.unwrap_err();
            assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{round}: {error}");
            assert!(error.to_string().contains("q2"), "{round}: {error}");
        }
        publish_one(&broker, to("q", &id)).await.unwrap();
    }
    assert_eq!(broker.depth(&queue).await.unwrap(), rounds + 1);
    wait_until(
        "the connections that were replaced are closed",
        async || crate::support::sorted(&server, &["list_connections", "pid"]).len() <= 2,
    )
    .await;
}

/// RabbitMQ refuses the type of this header, and its error names no message.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn refusal_that_names_no_message_leaves_all_in_flight_in_doubt() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let mut refused = to("q", "refused");
    refused
        .message
        .headers
        .set("CC", "not a list".into())
        .unwrap();
    let batch = [to("q", "1"), refused.clone(), to("q", "2")];
    for outcome in broker.publish(&batch).await {
        if let Err(error) = outcome {
            assert!(error.is_in_doubt(), "{error}");
        }
    }

    let error = publish_one(&broker, refused).await.unwrap_err();

    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    publish_one(&broker, to("q", "3")).await.unwrap();
}

/// The server answers a declaration after its caller has given up.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn late_refusal_is_not_taken_for_the_next_answer() {
    let server = blocking(RabbitServer::start);
    let broker = broker_at(&server.url());
    within("declare", broker.declare(&Queue::new("q")))
        .await
        .unwrap();
    let other = Queue::new("q").max_priority(3);
    for round in 0..3 {
        server.pause();
        let declared = tokio::time::timeout(Duration::from_millis(300), broker.declare(&other));
        assert!(declared.await.is_err(), "the server has answered");
        server.resume();

        let fresh = Queue::new(format!("fresh{round}"));
        // The connection may end, too, but the answer is not that of the other request.
        wait_until("the queue is declared", async || {
            match broker.declare(&fresh).await {
                Ok(()) => true,
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    false
                }
            }
        })
        .await;
        assert_eq!(broker.depth(&fresh).await.unwrap(), 0);

        publish_one(&broker, to(&fresh.name, "1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn task_with_a_distant_expiry_is_sent() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let call = ADD.s((1, 2)).expires_in(Duration::from_secs(100 * 86_400));
    client_of(&broker).apply(call).await.unwrap();
    assert_eq!(broker.depth(&Queue::new("new")).await.unwrap(), 1);
}

/// The exchange exists, and the user must not write to it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn denied_exchange_costs_other_sends_nothing() {
    let server = blocking(|| RabbitServer::builder().user("u", "u").start());
    blocking(|| server.control(&["set_permissions", "u", ".*", "^(?!feeds).*", ".*"]));
    let broker = broker_at(&server.url().replace("guest:guest", "u:u"));
    let queue = Queue::new("q");
    within("declare", broker.declare(&queue)).await.unwrap();
    let feeds = Exchange::topic("feeds");
    let mut confirmed = 0;
    for round in 0..100 {
        let id = round.to_string();
        let denied = async { broker.broadcast(&feeds, "feed", &task(&id)).await };
        let (denied, sent) = tokio::join!(denied, publish_one(&broker, to("q", &id)));
        let error = denied.unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
        match sent {
            Ok(()) => confirmed += 1,
            // The server closes the channel of the first message that it refuses.
            Err(error) if round == 0 => assert!(error.is_in_doubt(), "{error}"),
            Err(error) => panic!("{round}: {error}"),
        }
    }
    assert!(broker.depth(&queue).await.unwrap() >= confirmed);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_above_the_limit_of_the_server_costs_other_sends_nothing() {
    const LIMIT: usize = 100_000;
    let limit = LIMIT.to_string();
    let builder = RabbitServer::builder().setting("max_message_size", &limit);
    let server = blocking(|| builder.start());
    let broker = broker_at(&server.url());
    let queue = Queue::new("q");
    within("declare", broker.declare(&queue)).await.unwrap();
    let mut confirmed = 0;
    for round in 0..20 {
        let mut large = to("q", "large");
        large.message.body = vec![b'x'; LIMIT + 1].into();
        let batch = [to("q", "small"), large, to("q", "small")];
        let outcomes = broker.publish(&batch).await;
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("max_message_size"), "{error}");
        for outcome in [&outcomes[0], &outcomes[2]] {
            match outcome {
                Ok(()) => confirmed += 1,
                Err(error) if round == 0 => assert!(error.is_in_doubt(), "{error}"),
                Err(error) => panic!("{round}: {error}"),
            }
        }
    }
    assert!(broker.depth(&queue).await.unwrap() >= confirmed);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn first_sends_to_many_new_queues_declare_each() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let sends = (0..400).map(|number| {
        let queue = Arc::new(Queue::new(format!("tenant-{number}")));
        publish_one(&broker, to_declared(&queue, "1"))
    });
    for sent in join_all(sends).await {
        sent.unwrap();
    }
    let queues = test_vhost.rows("list_queues", &["name", "messages_ready"]);
    assert_eq!(queues.len(), 400);
    assert!(queues.iter().all(|row| row[1] == "1"), "{queues:?}");
}

/// The process of a quorum queue is suspended, so that it confirms nothing. RabbitMQ
/// then stops reading from the connection, so that sends which are under way may stay
/// without a confirm; later ones do not notice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_that_confirms_nothing_holds_up_no_other_queue() {
    const SLOW: Task<(i64, i64), i64> = Task::new("tasks.add").queue("slow").ignore_result();
    let server = blocking(RabbitServer::start);
    let broker = broker_at(&server.url());
    within("declare", broker.declare(&Queue::new("slow").quorum()))
        .await
        .unwrap();
    let app = App::new(Arc::new(broker.clone()))
        .with_config(Config::new().operation_timeout(Duration::from_secs(5)));
    let client = app.client();
    client.send(SLOW, (0, 0)).await.unwrap();
    client.send(ADD, (0, 0)).await.unwrap();
    process_of_queue(&server, "suspend", "slow");

    // More than the client lets in flight.
    let slow: Vec<_> = (0..1_500)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.send(SLOW, (number, number)).await })
        })
        .collect();
    let (mut sent, mut in_doubt) = (1, 0);
    let mut rounds_without_failure = 0;
    while rounds_without_failure < 10 {
        let sends = (0..100).map(|number| client.send(ADD, (number, number)));
        let failures = join_all(sends).await.into_iter().filter_map(Result::err);
        let failures: Vec<_> = failures.collect();
        sent += 100 - failures.len() as u64;
        in_doubt += failures.len() as u64;
        rounds_without_failure = match failures.is_empty() {
            true => rounds_without_failure + 1,
            false => 0,
        };
        assert!(in_doubt <= 200, "{in_doubt}: {}", failures[0]);
    }
    let arrived = broker.depth(&Queue::new("new")).await.unwrap();
    assert!(arrived >= sent, "{arrived} of {sent}");
    println!("{sent} sends to the other queue were confirmed, {in_doubt} were in doubt");

    for one in slow {
        let error = one.await.unwrap().unwrap_err();
        let SendError::Broker { cause, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(cause.kind(), ServiceErrorKind::TimedOut, "{error}");
    }
    client.send(ADD, (1, 1)).await.unwrap();
    process_of_queue(&server, "resume", "slow");
    wait_until("the queue accepts messages again", async || {
        client.send(SLOW, (1, 1)).await.is_ok()
    })
    .await;
    app.close().await;
}

/// Suspends or resumes the process of a quorum queue.
fn process_of_queue(server: &RabbitServer, action: &str, queue: &str) {
    let code = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
         {{Name, _}} = amqqueue:get_pid(Q), sys:{action}(Name)."
    );
    blocking(|| server.control(&["eval", &code]));
}

/// Events, replies and results are not mandatory: the server does not return them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_without_receiver_is_dropped_unless_it_is_mandatory() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let events = Exchange::topic("celeryev");
    let sent = broker.broadcast(&events, "task.sent", &task("1")).await;
    assert_eq!(sent.unwrap(), None);
    publish_one(&broker, to("gone", "1").not_mandatory())
        .await
        .unwrap();
    let error = publish_one(&broker, to("gone", "1")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unroutable, "{error}");
}

/// A worker's consumer, mailbox and sends fit into a limit of four channels per user.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn consumer_mailbox_and_sends_need_at_most_four_channels() {
    let server = blocking(|| RabbitServer::builder().user("small", "small").start());
    blocking(|| server.control(&["set_user_limits", "small", "{\"max-channels\": 4}"]));
    let url = server.url().replace("guest:guest", "small:small");
    let broker = AmqpBroker::new(AmqpOptions::parse(&url).unwrap());
    let queue = Queue::new("q");
    let consumer = consumer(&broker, &[&queue], 4).await;
    let control = Exchange::topic("control");
    let mut mailbox = broker
        .subscribe(&celery_runtime::Mailbox::of(control.clone(), "#"))
        .await
        .unwrap();
    for round in 0..20 {
        publish_one(&broker, to("q", &round.to_string()))
            .await
            .unwrap();
        broker.broadcast(&control, "a", &task("1")).await.unwrap();
        within("the broadcast", mailbox.next()).await.unwrap();
        let taken = receive_one(&*consumer).await;
        crate::support::ack_all(&*consumer, &[taken]).await;
        broker
            .declare(&Queue::new(format!("q{round}")))
            .await
            .unwrap();
    }
}
