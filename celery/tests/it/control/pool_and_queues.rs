//! Commands that change rate limits, time limits, queues and the pool.

use super::{heartbeating, run_program, start};
use crate::support::{RunningWorker, Setup, for_each_broker, test_tasks};

for_each_broker! {
    rate_and_time_limits_take_effect: redis, rabbitmq;
    queues_are_added_and_cancelled: redis, rabbitmq;
    pool_grows_and_shrinks_on_command: redis, rabbitmq;
    autoscaled_pool_follows_load: redis, rabbitmq;
}

async fn rate_and_time_limits_take_effect(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
same(node.control("rate_limit", "tasks.add", "5/s"), {"ok": "new rate limit set successfully"})
assert "tasks.add [rate_limit=5/s]" in node.inspect("registered")
begun = time.monotonic()
for n, result in enumerate([send("tasks.add", (n, 1)) for n in range(6)]):
    same(get(result), n + 1)
took = time.monotonic() - begun
assert took > 0.95, took
same(node.control("rate_limit", "tasks.add", 0), {"ok": "rate limit disabled successfully"})
assert "tasks.add" in node.inspect("registered")
begun = time.monotonic()
for result in [send("tasks.add", (n, 1)) for n in range(30)]:
    get(result)
assert time.monotonic() - begun < 5

same(node.control("time_limit", "tasks.sleep", soft=0.2, hard=60),
     {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "SoftTimeLimitExceeded")
same(node.control("time_limit", "tasks.sleep", hard=0.2), {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "TimeLimitExceeded")
same(node.control("time_limit", "tasks.sleep"), {"ok": "time limits set successfully"})
same(get(send("tasks.sleep", (0.4,))), 0.4)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn queues_are_added_and_cancelled(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def queues():
    return [queue["name"] for queue in node.inspect("active_queues")]

# The worker runs a task all the time.
running = send("test.wait")
state_is(running, "PROGRESS")
node.control("pool_grow", 1)
waiting = send("tasks.add", (1, 2), queue="more")
same(node.control("add_consumer", "more"), {"ok": "add consumer more"})
same(node.control("add_consumer", "more"), {"ok": "add consumer more"})
same(queues(), ["celery", "more"])
same(get(waiting), 3)
same(get(send("tasks.add", (3, 4), queue="more")), 7)
same(get(send("tasks.add", (5, 6))), 11)
same(node.control("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(node.control("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(queues(), ["celery"])
left = [send("tasks.add", (n, n), queue="more") for n in range(3)]
same(get(send("tasks.add", (5, 6))), 11)
same([result.state for result in left], ["PENDING"] * 3)
node.control("add_consumer", "more")
same([get(result) for result in left], [0, 2, 4])

answer = node.control("add_consumer", "bound", exchange="events", exchange_type="topic",
                    routing_key="a.#")
same(answer, {"ok": "add consumer bound"})
found = [queue for queue in node.inspect("active_queues") if queue["name"] == "bound"]
same([(queue["exchange"]["name"], queue["exchange"]["type"], queue["routing_key"])
      for queue in found], [("events", "topic", "a.#")])

# Without queues the worker idles until one is added.
for queue in ("celery", "more", "bound"):
    node.control("cancel_consumer", queue)
same(queues(), [])
left = send("tasks.add", (1, 1))
node.control("add_consumer", "celery")
same(get(left), 2)
send("test.release")
same(get(running), "released")
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_no_unacked().await;
}

async fn pool_grows_and_shrinks_on_command(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def size():
    return len(node.inspect("stats")["pool"]["processes"])

long = [send("tasks.sleep", (600,)) for _ in range(3)]
until("one task runs", lambda: len(node.inspect("active")) == 1)
same(node.control("pool_grow", 2), {"ok": "pool will grow"})
same(size(), 3)
node.wait_for_ids("active", *long)
same(node.inspect("stats")["prefetch_count"], 12)
same(node.control("pool_shrink", 1), {"ok": "pool will shrink"})
same(size(), 2)
# Running tasks keep running.
node.wait_for_ids("active", *long)
reserved = send("tasks.add", (1, 2))
node.wait_for_ids("reserved", reserved)
node.control("terminate", long[0].id)
node.wait_for_ids("active", *long[1:])
node.wait_for_ids("reserved", reserved)
node.control("terminate", long[1].id)
same(get(reserved), 3)
node.control("terminate", long[2].id)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn autoscaled_pool_follows_load(setup: Setup) {
    let worker = heartbeating(&setup, "rust@test", test_tasks()).autoscale(1..=4);
    let worker = RunningWorker::start(worker).await;
    let program = r#"
def size():
    return len(node.inspect("stats")["pool"]["processes"])

same(size(), 1)
long = [send("tasks.sleep", (600,)) for _ in range(6)]
until("four tasks run", lambda: len(node.inspect("active")) == 4)
scale = node.inspect("stats")["autoscaler"]
same((scale["max"], scale["min"], scale["current"]), (4, 1, 4))
assert "error" in node.control("pool_grow", 1)
same(node.control("autoscale", 5, 2), {"ok": "autoscale now max=5 min=2"})
until("five tasks run", lambda: len(node.inspect("active")) == 5)
for result in long:
    node.control("revoke", result.id, terminate=True)
until("the pool has two slots", lambda: size() == 2)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}
