//! Malformed control commands and events, and floods of valid ones: the worker
//! keeps running tasks, and its memory is bounded.

use crate::support::{RunningWorker, Setup, WorkerProcess, for_each_broker, test_tasks};

for_each_broker! {
    malformed_commands_are_ignored: redis, rabbitmq;
    ten_thousand_revocations_do_not_delay_tasks: redis, rabbitmq;
    revocations_are_bounded: redis;
    event_flood_does_not_delay_tasks: redis, rabbitmq;
    unread_replies_expire: redis;
}

const TOOLS: &str = r#"
from workers import *
from kombu import Exchange

node = Node("rust@test")
PIDBOX = Exchange("celery.pidbox", type="fanout", durable=False)
EVENTS = Exchange("celeryev", type="topic", durable=True)

def publish(body, exchange=PIDBOX, routing_key="", content_type="application/json",
          encoding="utf-8", headers=None):
    """Publishes a body as it is."""
    body = body if isinstance(body, (bytes, str)) else json.dumps(body)
    with app.producer_pool.acquire() as producer:
        producer.publish(body, exchange=exchange, routing_key=routing_key, declare=[exchange],
                         content_type=content_type, content_encoding=encoding, headers=headers,
                         retry=False)

def assert_works():
    """Asserts that the worker replies and runs tasks."""
    same(node.inspect("ping"), {"ok": "pong"})
    same(call("tasks.add", 1, 2), 3)
"#;

async fn run_program(setup: &Setup, program: &str) {
    setup.python(format!("{TOOLS}{program}")).await;
}

async fn start(setup: &Setup) -> RunningWorker {
    let worker = setup.app().worker(test_tasks()).hostname("rust@test");
    RunningWorker::start(worker.concurrency(2).task_events(true)).await
}

async fn malformed_commands_are_ignored(setup: Setup) {
    let worker = start(&setup).await;
    let program = r#"
assert_works()
for exchange, key in ((PIDBOX, ""), (EVENTS, "worker.elect")):
    for body in (b"", b"\xff\xfe\x00", b"{", b"[]", b"null", b"5", b'"ping"', b"[" * 100_000,
                 b'{"method": "ping"' + b" " * 1000, os.urandom(10_000)):
        publish(body, exchange, key)
    publish(b"a" * 10_000_000, exchange, key)
    publish(b'{"method": "ping", "type": "worker-elect", "arguments": {"x": "' + b"a" * 10_000_000
          + b'"}}', exchange, key)
    publish(b"{}", exchange, key, content_type="application/x-python-serialize", encoding="binary")
    publish("method: ping", exchange, key, content_type="application/x-yaml")
    publish(b"{}", exchange, key, content_type="no/such", encoding="nor-this")
    publish('{"method": "ping"}', exchange, key, headers={"compression": "application/x-gzip"})
    publish('{"method": "ping"}', exchange, key, headers={"clock": "late", "expires": []})
assert_works()

reply = {"exchange": "reply.celery.pidbox", "routing_key": "unknown"}
for command in (
    {"method": 5}, {"method": None}, {"method": ["ping"]}, {"nothing": "ping"},
    {"method": "ping", "arguments": []}, {"method": "ping", "arguments": "x"},
    {"method": "ping", "destination": {"a": 1}}, {"method": "ping", "destination": [1, None]},
    {"method": "ping", "pattern": 5, "matcher": {}},
    {"method": "ping", "pattern": "*" * 10_000, "matcher": "glob"},
    {"method": "ping", "pattern": "(" * 10_000, "matcher": "pcre"},
    {"method": "ping", "pattern": "((a{99}){99}){99}", "matcher": "pcre"},
    {"method": "ping", "reply_to": 5}, {"method": "ping", "reply_to": {"exchange": 5}},
    {"method": "ping", "ticket": 5, "reply_to": reply},
    {"method": "ping", "reply_to": {"exchange": "", "routing_key": ""}},
    {"method": "ping", "reply_to": {"exchange": "x" * 300, "routing_key": "y" * 300}},
    {"method": "x" * 1_000_000, "reply_to": reply},
    {"method": "revoke", "arguments": {"task_id": {"a": ["b"]}, "terminate": "yes"}},
    {"method": "hello", "arguments": {"from_node": 5, "revoked": {"a": {"b": []}, "c": None}}},
    {"method": "query_task", "arguments": {"ids": 5}, "reply_to": reply},
    {"method": "registered", "arguments": {"taskinfoitems": {"a": 1}}, "reply_to": reply},
    {"method": "election", "arguments": {"id": [], "topic": {}, "action": 5}},
    {"method": "election", "arguments": {"id": "odd", "topic": "task", "action": 5}},
    {"method": "election", "arguments": {"id": "none", "topic": "nosuch", "action": {}}},
    {"method": "enable_events", "arguments": {"more": 1}},
):
    publish(command)
for event in (
    {"type": "worker-elect"}, {"type": 5, "id": "a"}, [{"type": "worker-elect", "id": 5}, 5],
    {"type": "worker-elect", "id": "b", "clock": -1, "pid": "x", "hostname": {}, "topic": []},
    {"type": "worker-elect", "id": "c", "clock": 2**70, "topic": "task", "action": [1]},
):
    publish(event, EVENTS, "worker.elect")
assert_works()
# Clocks that are no numbers do not advance the logical clock.
assert node.inspect("clock")["clock"] < 2**63
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn ten_thousand_revocations_do_not_delay_tasks(setup: Setup) {
    let worker = start(&setup).await;
    let program = r#"
later = [send("tasks.add", (n, n), countdown=60) for n in range(20)]
sent = [send("tasks.add", (n, n)) for n in range(500)]
victims = [result.id for result in later] + [str(uuid.uuid4()) for _ in range(9_980)]
for victim in victims:
    app.control.revoke(victim)
sent += [send("tasks.add", (n, n)) for n in range(500)]
for n, result in enumerate(sent):
    same(get(result), n % 500 * 2)
until("all are revoked", lambda: len(node.inspect("revoked")) == 10_000)
same(set(node.inspect("revoked")), set(victims))
for result in later:
    assert isinstance(failure(result), TaskRevokedError)
assert_works()
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_no_unacked().await;
}

async fn revocations_are_bounded(setup: Setup) {
    let settings = [("CELERY_WORKER_HOSTNAME", "rust@test")];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let program = r#"
for part in range(15):
    node.control("revoke", [f"{part}-{n}-{'x' * 30}" for n in range(10_000)])
    # Each stamp value takes one of the bounded entries.
    node.command("revoke_by_stamped_headers", headers={"part": [f"{part}-{n}" for n in range(10_000)]})
known = node.inspect("revoked")
same((len(known), known[-1]), (50_000, f"14-9999-{'x' * 30}"))
first = app.signature("tasks.add", (1, 2)).stamp(part="0-0", stamped_headers=["part"])
last = app.signature("tasks.add", (1, 2)).stamp(part="14-9999", stamped_headers=["part"])
same(get(first.apply_async()), 3)
assert isinstance(failure(last.apply_async()), TaskRevokedError)
used = node.inspect("stats")["rusage"]["maxrss"]
assert 0 < used < 400_000, f"{used} KiB"
assert_works()
"#;
    run_program(&setup, program).await;
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}

async fn event_flood_does_not_delay_tasks(setup: Setup) {
    let worker = start(&setup).await;
    let program = r#"
def event(kind, n):
    return {"type": kind, "hostname": f"other{n % 100}@test", "utcoffset": 0, "pid": n, "clock": n,
            "timestamp": time.time(), "freq": 2.0, "id": f"election-{n}", "topic": "task",
            "action": {"task": "tasks.fail", "args": ["elected"], "kwargs": {}, "options": {}}}

def flood():
    for n in range(5_000):
        publish(event("worker-heartbeat", n), EVENTS, "worker.heartbeat")
        publish([event("task-started", n)] * 20, EVENTS, "task.multi")
        publish(event("worker-elect", n), EVENTS, "worker.elect")

flooding = threading.Thread(target=flood)
flooding.start()
rounds = 0
while flooding.is_alive():
    assert_works()
    rounds += 1
assert rounds > 3, rounds
flooding.join()
assert_works()
same(node.inspect("stats")["total"].get("tasks.fail"), None)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_no_unacked().await;
}

async fn unread_replies_expire(setup: Setup) {
    let worker = start(&setup).await;
    let program = r#"
mailbox = app.control.mailbox
with app.connection_for_write() as connection:
    channel = connection.default_channel
    mailbox.get_reply_queue()(channel).declare()
    for n in range(200):
        mailbox._publish("ping", {}, reply_ticket=str(n), channel=channel)
    redis = channel.client
    list = f"{mailbox.oid}.reply.celery.pidbox"
    until("all replies are sent", lambda: redis.llen(list) == 200)
    assert 0 < redis.ttl(list) <= 3600, redis.ttl(list)
    # Replies to mailboxes that no client has declared.
    for n in range(200):
        publish({"method": "ping", "ticket": str(n), "arguments": {}, "reply_to":
               {"exchange": "reply.celery.pidbox", "routing_key": f"unknown-{n}"}})
    # The worker replies to this client after all of the commands above.
    celery("inspect", "-t", "20", "-d", node.name, "ping")
    for key in redis.keys("*reply.celery.pidbox*"):
        if redis.type(key) == b"list":
            assert redis.ttl(key) > 0, key
    # No list was created for the undeclared mailboxes.
    assert not redis.keys("*unknown*"), redis.keys("*unknown*")
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}
