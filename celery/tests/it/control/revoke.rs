//! Revocations by id and by stamped header, and termination of running tasks.

use super::{heartbeating, run_program, start};
use crate::support::{RunningWorker, Setup, for_each_broker, test_tasks};

for_each_broker! {
    revoked_tasks_are_not_run: redis, rabbitmq;
    running_tasks_are_terminated: redis, rabbitmq;
    stamped_tasks_are_revoked_by_header: redis, rabbitmq;
}

async fn revoked_tasks_are_not_run(setup: Setup) {
    let worker = heartbeating(&setup, "rust@test", test_tasks()).task_events(true);
    // The worker receives the delayed task behind the prefetched ones.
    let worker = RunningWorker::start(worker.prefetch_multiplier(10)).await;
    let program = r#"
monitor = EventMonitor()
blocker = send("test.wait")
state_is(blocker, "PROGRESS")
reserved = [send("tasks.add", (n, n)) for n in range(3)]
later = send("tasks.add", (1, 2), countdown=2)
node.wait_for_ids("reserved", *reserved)
node.wait_for_ids("scheduled", later)
unseen = AsyncResult(str(uuid.uuid4()), app=app)
answer = node.control("revoke", [reserved[0].id, reserved[2].id])
assert answer["ok"] in (f"tasks {{'{reserved[0].id}', '{reserved[2].id}'}} flagged as revoked",
                        f"tasks {{'{reserved[2].id}', '{reserved[0].id}'}} flagged as revoked"), answer
same(node.control("revoke", later.id), {"ok": f"tasks {{'{later.id}'}} flagged as revoked"})
node.control("revoke", unseen.id)
# Revoking a running task does not end it.
node.control("revoke", blocker.id)
for result in (reserved[0], reserved[2], later, unseen):
    # The result is REVOKED at once, also for tasks that no worker has received.
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "revoked", repr(error)
send("tasks.echo", task_id=unseen.id)
for result in (reserved[0], reserved[2]):
    same(monitor.wait("task-revoked", result)["terminated"], False)
    same(monitor.kinds(result), ["task-received", "task-revoked"])
for result in (later, ):
    event = monitor.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (False, None, False))
    same(monitor.kinds(result), ["task-received", "task-revoked"])
node.control("pool_grow", 1)
send("test.release")
same(get(blocker), "released")
same(get(reserved[1]), 2)
monitor.wait("task-revoked", unseen)
same(monitor.kinds(unseen), ["task-revoked"])
same(set(node.inspect("revoked")),
     {reserved[0].id, reserved[2].id, later.id, unseen.id, blocker.id})
same(node.inspect("stats")["total"], {"test.wait": 1, "test.release": 1, "tasks.add": 1})
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn running_tasks_are_terminated(setup: Setup) {
    let worker = heartbeating(&setup, "rust@test", test_tasks()).task_events(true);
    let worker = RunningWorker::start(worker.concurrency(3)).await;
    let program = r#"
monitor = EventMonitor()
long = [send("tasks.sleep", (600,)) for _ in range(3)]
node.wait_for_ids("active", *long)
same(node.control("terminate", long[0].id), {"ok": f"terminate: {long[0].id}"})
same(node.control("revoke", long[1].id, terminate=True, signal="SIGKILL"),
     {"ok": f"terminate: {long[1].id}"})
same(node.control("terminate", "unknown"), {"ok": "terminate: tasks unknown"})
for result, signum in ((long[0], 15), (long[1], 9)):
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "terminated", repr(error)
    same(result.state, "REVOKED")
    event = monitor.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (True, signum, False))
    same(monitor.kinds(result), ["task-received", "task-started", "task-revoked"])
node.wait_for_ids("active", long[2])
# The slots of the terminated tasks are free.
same([get(send("tasks.add", (n, n))) for n in range(4)], [0, 2, 4, 6])
AsyncResult(long[2].id, app=app).revoke(terminate=True)
assert isinstance(failure(long[2]), TaskRevokedError)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn stamped_tasks_are_revoked_by_header(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def stamped(name, args=(), **options):
    return app.signature(name, args).stamp(**options).apply_async()

monitor = EventMonitor()
running = stamped("tasks.sleep", (600,), monitoring_id="m-1", stamped_headers=["monitoring_id"])
node.wait_for_ids("active", running)
reserved = stamped("tasks.add", (1, 2), monitoring_id=["m-2", "m-3"], stamped_headers=["monitoring_id"])
kept = stamped("tasks.add", (3, 4), monitoring_id="m-9", stamped_headers=["monitoring_id"])
node.wait_for_ids("reserved", reserved, kept)
answer = node.control("revoke_by_stamped_headers", {"monitoring_id": ["m-3", "m-4"]})
assert "flagged as revoked, but not terminated" in answer["ok"], answer
answer = node.control("revoke_by_stamped_headers", {"monitoring_id": "m-1"}, terminate=True)
assert "revoked" in answer["ok"], answer
assert isinstance(failure(running), TaskRevokedError)
same(monitor.wait("task-revoked", running)["terminated"], True)
assert isinstance(failure(reserved), TaskRevokedError)
same(get(kept), 7)
answer = node.command("revoke_by_stamped_headers", headers=["color=red"])
assert "flagged as revoked" in answer["ok"], answer
assert isinstance(failure(stamped("tasks.add", (1, 2), color="red", stamped_headers=["color"])),
                  TaskRevokedError)
same(get(stamped("tasks.add", (1, 2), color="blue", stamped_headers=["color"])), 3)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}
