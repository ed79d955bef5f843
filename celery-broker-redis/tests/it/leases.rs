//! Leases: deliveries in hand are renewed, those of dead processes are restored, and
//! requests without an answer change nothing later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use celery_broker_redis::RedisBroker;
use celery_runtime::{Consumer, DeliveryTag, ServiceErrorKind, Settled, Settlement};
use serde_json::{Value, json};
use test_servers::{Fault, InjectedFault, Proxy, RedisServer};

use crate::support::{
    TIMEOUT, ack, all, broker_at, broker_with, consumer, consumer_of, count, id, ids, message_id,
    queued_count, receive, receive_one, send, unacked_count, wait_until, worker,
};

/// The end of the entries of queue `q`, an argument of the script that fetches.
const FETCH: &str = r#","","q"]"#;

/// The command of an acknowledgement, which no script contains.
const ACK: &str = "$4\r\nHDEL\r\n$7\r\nunacked\r\n";

/// Returns a server, a proxy to it and a broker behind the proxy.
fn behind_proxy(mut options: Value) -> (RedisServer, Proxy, RedisBroker) {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    options["socket_timeout"] = json!(0.5);
    let broker = broker_at(&format!("redis://127.0.0.1:{}", proxy.port()), &options);
    (server, proxy, broker)
}

/// Returns the scores of the index, by tag.
fn scores(server: &RedisServer) -> BTreeMap<String, String> {
    let range = ["ZRANGE", "unacked_index", "0", "-1", "WITHSCORES"];
    let mut texts = server.command(&range).texts().into_iter();
    let mut scores = BTreeMap::new();
    while let (Some(tag), Some(score)) = (texts.next(), texts.next()) {
        scores.insert(tag, score);
    }
    scores
}

/// Waits until all deliveries in the index were renewed.
async fn wait_for_renewal(server: &RedisServer) {
    let before = scores(server);
    wait_until("a renewal", async || {
        let now = scores(server);
        !now.is_empty()
            && now
                .iter()
                .all(|(tag, score)| before.get(tag) != Some(score))
    })
    .await;
}

async fn wait_for_request(fault: &InjectedFault) {
    wait_until("the request", async || fault.has_request()).await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn delivery_in_hand_is_not_restored_after_the_visibility_timeout() {
    let server = RedisServer::start();
    let options = json!({"visibility_timeout": 0.6, "rescue_after": 0});
    let broker = broker_with(&server, &options);
    let other = broker_with(&server, &options);
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    let held = receive_one(&*consumer).await;
    // Four times the visibility timeout.
    for _ in 0..12 {
        wait_for_renewal(&server).await;
        assert_eq!(other.restore_abandoned().await.unwrap(), 0);
    }
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
    ack(&*consumer, &held).await;
    assert_eq!(unacked_count(&server), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn delivery_that_was_taken_back_is_reported() {
    let server = RedisServer::start();
    let options = json!({"visibility_timeout": 0.6});
    let broker = broker_with(&server, &options);
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1", "2"]).await;
    let held = receive(&*consumer, 2).await;
    let lost = held[0].tag.clone();
    server.command(&["HDEL", "unacked", lost.as_str()]);
    server.command(&["ZREM", "unacked_index", lost.as_str()]);
    let reported = tokio::time::timeout(TIMEOUT, consumer.lost()).await;
    assert_eq!(reported.expect("in time"), std::slice::from_ref(&lost));
    let settled = consumer.settle(&[Settlement::Ack(lost)]).await;
    assert_eq!(all(settled).unwrap(), [Settled::Gone]);
    ack(&*consumer, &held[1]).await;
}

/// Settles with an acknowledgement that gets no answer.
async fn ack_without_answer(consumer: &dyn Consumer, tag: &DeliveryTag) {
    let settled = consumer.settle(&[Settlement::Ack(tag.clone())]).await;
    let error = all(settled).expect_err("no answer");
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
    assert!(error.is_in_doubt());
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn repeated_ack_tells_whether_the_first_was_carried_out() {
    for (fault, expected) in [
        (Fault::SwallowAnswer, Settled::Gone),
        (Fault::HoldRequest, Settled::Done),
    ] {
        let (server, proxy, broker) = behind_proxy(json!({}));
        let consumer = consumer(&broker, &["q"]).await;
        send(&broker, "q", &["1"]).await;
        let held = receive_one(&*consumer).await;
        let fault = proxy.on_request(ACK, fault);
        ack_without_answer(&*consumer, &held.tag).await;
        wait_for_request(&fault).await;
        let again = consumer.settle(&[Settlement::Ack(held.tag.clone())]).await;
        assert_eq!(all(again).unwrap(), [expected]);
        fault.release();
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn renewal_between_an_ack_and_its_repetition_leaves_nothing() {
    for (fault, left, expected) in [
        // The first delivery is not renewed any more, and does not come back.
        (Fault::SwallowAnswer, 1, Settled::Gone),
        // It is renewed, since it is still in hand.
        (Fault::HoldRequest, 2, Settled::Done),
    ] {
        let (server, proxy, broker) = behind_proxy(json!({"visibility_timeout": 0.6}));
        let consumer = consumer(&broker, &["q"]).await;
        send(&broker, "q", &["1", "2"]).await;
        let held = receive(&*consumer, 2).await;
        let fault = proxy.on_request(ACK, fault);
        ack_without_answer(&*consumer, &held[0].tag).await;
        wait_for_request(&fault).await;
        wait_for_renewal(&server).await;
        wait_for_renewal(&server).await;
        assert_eq!(unacked_count(&server), left);
        let again = consumer
            .settle(&[Settlement::Ack(held[0].tag.clone())])
            .await;
        assert_eq!(all(again).unwrap(), [expected]);
        fault.release();
        ack(&*consumer, &held[1]).await;
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn renewal_that_comes_late_reports_what_others_have_restored() {
    let (server, proxy, broker) = behind_proxy(json!({"visibility_timeout": 0.6}));
    let other = broker_with(&server, &json!({"visibility_timeout": 0.6}));
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    let held = receive_one(&*consumer).await;
    proxy.silence();
    let mut restored = 0;
    while restored == 0 {
        restored = other.restore_abandoned().await.unwrap();
    }
    assert_eq!(queued_count(&server, "q"), 1);
    proxy.reset();
    proxy.heal();
    let lost = tokio::time::timeout(TIMEOUT, consumer.lost()).await;
    assert_eq!(lost.expect("in time"), [held.tag]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn late_fetch_is_discarded_with_its_connection() {
    let (server, proxy, broker) = behind_proxy(json!({}));
    let first = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    ack(&*first, &receive_one(&*first).await).await;

    let late = proxy.on_request(FETCH, Fault::HoldRequest);
    let error = first.receive(8).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
    wait_for_request(&late).await;
    let second = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["2"]).await;
    late.release();
    let received = receive_one(&*second).await;
    assert_eq!(id(&received), "2");
    ack(&*second, &received).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn late_fetch_is_found_where_connections_cannot_be_killed() {
    let (server, proxy, broker) = behind_proxy(json!({"rescue_after": 1}));
    server.command(&["ACL", "SETUSER", "default", "-client|kill"]);
    let first = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    ack(&*first, &receive_one(&*first).await).await;

    let late = proxy.on_request(FETCH, Fault::HoldRequest);
    first.receive(8).await.unwrap_err();
    wait_for_request(&late).await;
    let second = consumer(&broker, &["q"]).await;
    // The late request takes the message, under a tag that no consumer knows.
    send(&broker, "q", &["2"]).await;
    late.release();
    let received = receive_one(&*second).await;
    assert_eq!(id(&received), "2");
    ack(&*second, &received).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn late_fetch_is_looked_up_when_the_consumer_closes() {
    let (server, proxy, broker) = behind_proxy(json!({}));
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    ack(&*consumer, &receive_one(&*consumer).await).await;

    let swallowed = proxy.on_request(FETCH, Fault::SwallowAnswer);
    send(&broker, "q", &["2"]).await;
    consumer.receive(8).await.unwrap_err();
    wait_for_request(&swallowed).await;
    assert_eq!(unacked_count(&server), 1);
    consumer.close().await.unwrap();
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (1, 0));
}

/// Receives all messages of queue `q` in a runtime that then ends, as with a killed
/// process: nothing is dropped, and no task runs any more.
fn receive_and_die(server: &RedisServer, options: &Value, count: usize) {
    let broker = broker_with(server, options);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let consumer = consumer(&broker, &["q"]).await;
        let mut received = 0;
        while received < count {
            received += receive(&*consumer, count - received).await.len();
        }
        std::mem::forget(consumer);
    });
    runtime.shutdown_background();
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn deliveries_of_a_dead_process_are_restored_before_the_visibility_timeout() {
    let server = Arc::new(RedisServer::start());
    let options = json!({"rescue_after": 1});
    let sent: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
    let broker = broker_with(&server, &options);
    send(&broker, "q", &sent).await;
    let (dying, its_options) = (Arc::clone(&server), options.clone());
    let died = std::thread::spawn(move || receive_and_die(&dying, &its_options, 100));
    wait_until("the process ends", async || died.is_finished()).await;
    died.join().expect("it has received");
    // A delivery of kombu has another tag.
    let kombus = "6b29fc40-ca47-1067-b31d-00dd010662da";
    server.command(&["HSET", "unacked", kombus, r#"[{"body": ""}, "", "q"]"#]);
    server.command(&["ZADD", "unacked_index", "9999999999", kombus]);
    let consumer = consumer(&broker, &["q"]).await;
    let mut restored = Vec::new();
    while restored.len() < 100 {
        restored.extend(receive(&*consumer, 100 - restored.len()).await);
    }
    // The consumer receives while others are still being restored.
    let restored_ids: BTreeSet<_> = ids(&restored).into_iter().collect();
    assert_eq!(restored_ids, sent.iter().map(ToString::to_string).collect());
    assert!(restored.iter().all(|delivery| delivery.redelivered));
    assert_eq!(unacked_count(&server), 101);
    let owners = || count(&server, &["ZCARD", "unacked.owners"]);
    wait_until("the dead owner is removed", async || owners() == 1).await;
    assert_eq!(count(&server, &["HEXISTS", "unacked", kombus]), 1);
}

/// Waits until each owner was renewed this many times.
async fn wait_for_owners(server: &RedisServer, times: usize) {
    let owners = || {
        let range = ["ZRANGE", "unacked.owners", "0", "-1", "WITHSCORES"];
        server.command(&range).texts()
    };
    for _ in 0..times {
        let before = owners();
        wait_until("the owners are renewed", async || {
            let now = owners();
            // Of each owner, the name stays and the score changes.
            now.iter().filter(|one| !before.contains(one)).count() * 2 == before.len()
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn paused_server_makes_no_process_look_dead() {
    let server = RedisServer::start();
    let options = json!({"rescue_after": 1, "socket_timeout": 0.5});
    let brokers = [(); 4].map(|()| broker_with(&server, &options));
    let mut consumers = Vec::new();
    for (number, broker) in brokers.iter().enumerate() {
        let consumer = consumer(broker, &["q"]).await;
        send(broker, "q", &[&number.to_string()]).await;
        receive_one(&*consumer).await;
        consumers.push(consumer);
    }
    // All of them are able to tell dead owners.
    wait_for_owners(&server, 8).await;
    server.pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.resume();
    wait_for_owners(&server, 8).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 4));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unsettled_deliveries_of_a_closed_consumer_are_restored_at_once() {
    let server = RedisServer::start();
    // Far longer than the test.
    let options = json!({"rescue_after": 600});
    let first = broker_with(&server, &options);
    let consumer_of_first = consumer(&first, &["q"]).await;
    send(&first, "q", &["1"]).await;
    receive_one(&*consumer_of_first).await;
    consumer_of_first.close().await.unwrap();
    assert_eq!(unacked_count(&server), 1);

    let other = broker_with(&server, &json!({"rescue_after": 1}));
    let consumer = consumer(&other, &["q"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

/// Each consumer belongs to a worker of its own, and all are in one process.
#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn deliveries_of_a_worker_that_is_gone_are_restored_while_its_process_lives() {
    for closes in [true, false] {
        let server = RedisServer::start();
        let broker = broker_with(&server, &json!({"rescue_after": 1}));
        let staying = consumer(&broker, &["other"]).await;
        let ending = consumer(&broker, &["q"]).await;
        send(&broker, "q", &["1"]).await;
        receive_one(&*ending).await;
        if closes {
            ending.close().await.unwrap();
        }
        drop(ending);
        let next = consumer(&broker, &["q"]).await;
        assert_eq!(id(&receive_one(&*next).await), "1");
        drop(staying);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn workers_with_different_rescue_times_leave_each_other_alone() {
    let server = RedisServer::start();
    let slow = broker_with(&server, &json!({"rescue_after": 60}));
    let holding = consumer(&slow, &["q"]).await;
    send(&slow, "q", &["1"]).await;
    let held = receive_one(&*holding).await;
    let quick = broker_with(&server, &json!({"rescue_after": 1}));
    let watching = consumer(&quick, &["other"]).await;
    // Longer than the quick one needs to rescue.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
    ack(&*holding, &held).await;
    drop(watching);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn step_of_the_servers_clock_makes_no_worker_look_dead() {
    let server = RedisServer::start();
    let options = json!({"rescue_after": 2});
    let (first, second) = (
        broker_with(&server, &options),
        broker_with(&server, &options),
    );
    let holding = consumer(&first, &["q"]).await;
    send(&first, "q", &["1"]).await;
    let held = receive_one(&*holding).await;
    let watching = consumer(&second, &["other"]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let owners = server
        .command(&["ZRANGE", "unacked.owners", "0", "-1"])
        .texts();
    for owner in owners {
        server.command(&["ZINCRBY", "unacked.owners", "-100", &owner]);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
    ack(&*holding, &held).await;
    drop(watching);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn owner_that_is_refused_for_a_while_is_renewed_again() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"rescue_after": 1}));
    let consumer = consumer(&broker, &["q"]).await;
    server.command(&[
        "ACL",
        "SETUSER",
        "default",
        "resetkeys",
        "~q*",
        "~unacked",
        "~unacked_*",
    ]);
    wait_until("the leases expire", async || !consumer.has_current_leases()).await;
    server.command(&["ACL", "SETUSER", "default", "allkeys"]);
    wait_until("the leases are renewed", async || {
        consumer.has_current_leases()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn full_memory_does_not_end_the_leases() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"rescue_after": 1}));
    let consumer = consumer(&broker, &["q"]).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..30 {
        assert!(consumer.has_current_leases());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn loss_during_a_broken_connection_is_reported_to_the_next_consumer() {
    let (server, proxy, broker) = behind_proxy(json!({"visibility_timeout": 0.6}));
    let worker = worker(&["q"]);
    let first = consumer_of(&broker, &worker).await;
    send(&broker, "q", &["1"]).await;
    let held = receive_one(&*first).await;
    proxy.silence();
    let tag = held.tag.as_str();
    server.command(&["HDEL", "unacked", tag]);
    server.command(&["ZREM", "unacked_index", tag]);
    proxy.reset();
    proxy.heal();
    let second = consumer_of(&broker, &worker).await;
    let lost = tokio::time::timeout(TIMEOUT, second.lost()).await;
    assert_eq!(lost.expect("in time"), [held.tag]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn delivery_of_a_cancelled_queue_returns_when_its_fetch_is_looked_up() {
    let (server, proxy, broker) = behind_proxy(json!({"rescue_after": 1}));
    let mut worker = worker(&["p", "q"]);
    let both = consumer_of(&broker, &worker).await;
    send(&broker, "q", &["1"]).await;
    ack(&*both, &receive_one(&*both).await).await;
    let swallowed = proxy.on_request(FETCH, Fault::SwallowAnswer);
    send(&broker, "q", &["2"]).await;
    both.receive(8).await.unwrap_err();
    wait_for_request(&swallowed).await;
    drop(both);
    worker.queues.pop();
    let one = consumer_of(&broker, &worker).await;
    wait_until("the message is in its queue", async || {
        queued_count(&server, "q") == 1 && unacked_count(&server) == 0
    })
    .await;
    drop(one);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn leases_are_not_current_after_a_long_partition() {
    let (_server, proxy, broker) = behind_proxy(json!({"rescue_after": 1}));
    let first = consumer(&broker, &["q"]).await;
    assert!(first.has_current_leases());
    proxy.silence();
    wait_until("the leases are old", async || !first.has_current_leases()).await;
    proxy.reset();
    proxy.heal();
    // The renewal tells when the leases are current again.
    let woken = tokio::time::timeout(TIMEOUT, first.lost()).await;
    assert_eq!(woken.expect("in time"), []);
    assert!(first.has_current_leases());
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restored_copy_is_in_its_queue_once() {
    for is_acknowledged in [true, false] {
        let (server, proxy, broker) = behind_proxy(json!({}));
        let consumer = consumer(&broker, &["q"]).await;
        send(&broker, "q", &["1"]).await;
        let held = receive_one(&*consumer).await;
        let fault = match is_acknowledged {
            true => Fault::SwallowAnswer,
            false => Fault::HoldRequest,
        };
        let fault = proxy.on_request(ACK, fault);
        ack_without_answer(&*consumer, &held.tag).await;
        wait_for_request(&fault).await;
        let celery_runtime::Content::Message(message) = &held.content else {
            panic!("malformed");
        };
        let restored = consumer.restore(&held.tag, "q", message).await;
        restored.unwrap();
        fault.release();
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (1, 0));
        let again = receive_one(&*consumer).await;
        assert!(again.redelivered);
        assert_eq!(id(&again), message_id(message));
    }
}

/// Returns the resident memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or_default()
}

/// The memory is printed.
#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn ten_thousand_deliveries_are_renewed() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"visibility_timeout": 3}));
    let consumer = consumer(&broker, &["q"]).await;
    let numbers: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    for chunk in numbers.chunks(1000) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        send(&broker, "q", &chunk).await;
    }
    let before = resident_kib();
    let mut held = Vec::new();
    while held.len() < 10_000 {
        held.extend(receive(&*consumer, 10_000 - held.len()).await);
    }
    wait_for_renewal(&server).await;
    let after = resident_kib();
    println!("10,000 deliveries in hand: {before} KiB before, {after} KiB with their messages");
    assert_eq!(unacked_count(&server), 10_000);
}
