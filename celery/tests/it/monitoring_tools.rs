//! What operators see: `celery events`, Flower and the worker's log.

use std::time::Duration;

use celery::{Signature, Value};

use crate::support::{RunningWorker, Setup, TIMEOUT, WorkerProcess, for_each_broker, test_tasks};

for_each_broker! {
    celery_events_prints_task_and_worker_events: redis, rabbitmq;
    flower_monitors_and_controls_worker: redis, rabbitmq;
    worker_without_faults_logs_no_warnings: redis, rabbitmq, quorum, rpc;
}

async fn celery_events_prints_task_and_worker_events(setup: Setup) {
    let worker = setup.app().worker(test_tasks()).hostname("rust@test");
    let worker = RunningWorker::start(worker.concurrency(2).task_events(true)).await;
    let program = r#"
from workers import *
import signal

dump = subprocess.Popen([sys.executable, "-m", "celery", "-A", "worker_app", "events", "--dump"],
                        stdout=subprocess.PIPE, text=True)
lines = []
def read():
    for line in dump.stdout:
        lines.append(line)
threading.Thread(target=read, daemon=True).start()

def printed(*words):
    until(f"{words} is printed",
          lambda: [line for line in list(lines) if all(word in line for word in words)])

try:
    printed("rust@test", "heartbeat: ", "loadavg=", "sw_ident=")
    done, failed = send("tasks.add", (1,), {"y": 2}), send("tasks.fail", ("no",))
    get(done), failure(failed)
    printed("rust@test", "task received", f"tasks.add({done.id}) args=(1,) kwargs={{'y': 2}}")
    printed("rust@test", "task started", done.id)
    printed("rust@test", "task succeeded", done.id, "result=3", "runtime=")
    printed("rust@test", "task failed", failed.id, "exception=ValueError('no')")
    app.control.shutdown(destination=["rust@test"])
    printed("rust@test", "shutdown: ")
finally:
    dump.send_signal(signal.SIGKILL)
"#;
    setup.python(program).await;
    worker.stop().await;
}

async fn flower_monitors_and_controls_worker(setup: Setup) {
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@test"),
        ("CELERY_WORKER_CONCURRENCY", "2"),
        ("CELERY_WORKER_SEND_TASK_EVENTS", "1"),
    ];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let program = r#"
from workers import *
from flower_api import Flower

def state(result):
    return flower.get("/api/tasks").get(result.id, {}).get("state")

def becomes(result, expected):
    until(f"Flower shows {expected}", lambda: state(result) == expected)

with Flower() as flower:
    until("Flower shows the worker", lambda: flower.get("/api/workers?status=1").get("rust@test") is True)
    info = flower.get("/api/workers?refresh=1&workername=rust@test")["rust@test"]
    same(info["stats"]["pool"]["max-concurrency"], 2)
    same([queue["name"] for queue in info["active_queues"]], ["celery"])
    assert "tasks.add" in " ".join(info["registered"]), info["registered"]
    same((info["active"], info["reserved"], info["scheduled"], info["revoked"]), ([], [], [], []))
    assert info["conf"]["worker_concurrency"] == 2, info["conf"]

    done = send("tasks.add", (1,), {"y": 2})
    becomes(done, "SUCCESS")
    task = flower.get(f"/api/task/info/{done.id}")
    same({name: task[name] for name in ("name", "args", "kwargs", "result", "worker", "state")},
         {"name": "tasks.add", "args": "(1,)", "kwargs": "{'y': 2}", "result": "3",
          "worker": "rust@test", "state": "SUCCESS"})
    assert task["received"] <= task["started"] <= task["succeeded"] and task["runtime"] >= 0, task
    failed, retried = send("tasks.fail", ("no",)), send("tasks.retry", (1,))
    becomes(failed, "FAILURE")
    becomes(retried, "SUCCESS")
    task = flower.get(f"/api/task/info/{failed.id}")
    same(task["exception"], "ValueError('no')")
    assert "ValueError" in task["traceback"], task
    same(flower.get(f"/api/task/info/{retried.id}")["result"], "1")

    long = [send("tasks.sleep", (600,)) for _ in range(3)]
    becomes(long[0], "STARTED")
    flower.post(f"/api/task/revoke/{long[0].id}?terminate=true")
    becomes(long[0], "REVOKED")
    same(long[0].state, "REVOKED")
    flower.post("/api/worker/pool/grow/rust@test?n=2")
    flower.post("/api/worker/pool/shrink/rust@test?n=1")
    becomes(long[2], "STARTED")
    flower.post("/api/worker/queue/add-consumer/rust@test?queue=more")
    same(get(send("tasks.add", (3, 4), queue="more")), 7)
    flower.post("/api/worker/queue/cancel-consumer/rust@test?queue=more")
    flower.post("/api/task/rate-limit/tasks.add", workername="rust@test", ratelimit="100/s")
    flower.post("/api/task/timeout/tasks.sleep", workername="rust@test", hard=300)
    info = flower.get("/api/workers?refresh=1&workername=rust@test")["rust@test"]
    same(len(info["stats"]["pool"]["processes"]), 3)
    same([queue["name"] for queue in info["active_queues"]], ["celery"])
    same({task["id"] for task in info["active"]}, {long[1].id, long[2].id})
    same(info["revoked"], [long[0].id])
    assert "tasks.add [rate_limit=100/s]" in info["registered"], info["registered"]
    for result in long[1:]:
        flower.post(f"/api/task/revoke/{result.id}?terminate=true&signal=SIGKILL")
        becomes(result, "REVOKED")
    flower.post("/api/worker/shutdown/rust@test")
    until("Flower shows the worker as offline", lambda: flower.get("/api/workers?status=1")["rust@test"] is False)
"#;
    setup.python(program).await;
    assert_eq!(worker.wait().await, Some(0));
    setup.assert_drained().await;
}

/// Also the libraries log nothing: lapin logs each returned message with its body.
async fn worker_without_faults_logs_no_warnings(setup: Setup) {
    let settings = [
        ("CELERY_WORKER_SEND_TASK_EVENTS", "1"),
        ("CELERY_TASK_SEND_SENT_EVENT", "1"),
        ("RUST_LOG", "warn"),
    ];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let add = Signature::named("tasks.add", (1, 2), ());
    let sum = setup.client().apply(add).await.unwrap();
    assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), Value::Int(3));
    // Several heartbeats. The time itself is the subject.
    let idle = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(8),
    };
    tokio::time::sleep(idle).await;
    assert_eq!(worker.log(), "");
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}
