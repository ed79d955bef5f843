//! Programs that watch a fleet, as people use them: `celery events` and Flower.

use crate::support::{Running, Setup, WorkerProcess, stories, story};

stories! {
    celery_events_prints_what_happens: redis, rabbitmq;
    flower_sees_steers_and_stops_a_worker: redis, rabbitmq;
}

async fn celery_events_prints_what_happens(setup: Setup) {
    let worker = setup.app().worker(story()).hostname("rust@story");
    let worker = Running::start(worker.concurrency(2).task_events(true)).await;
    let program = r#"
from fleet import *
import signal

dump = subprocess.Popen([sys.executable, "-m", "celery", "-A", "more", "events", "--dump"],
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
    printed("rust@story", "heartbeat: ", "loadavg=", "sw_ident=")
    done, failed = send("tasks.add", (1,), {"y": 2}), send("tasks.fail", ("no",))
    get(done), failure(failed)
    printed("rust@story", "task received", f"tasks.add({done.id}) args=(1,) kwargs={{'y': 2}}")
    printed("rust@story", "task started", done.id)
    printed("rust@story", "task succeeded", done.id, "result=3", "runtime=")
    printed("rust@story", "task failed", failed.id, "exception=ValueError('no')")
    app.control.shutdown(destination=["rust@story"])
    printed("rust@story", "shutdown: ")
finally:
    dump.send_signal(signal.SIGKILL)
"#;
    setup.python(program).await;
    worker.stop().await;
}

async fn flower_sees_steers_and_stops_a_worker(setup: Setup) {
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@story"),
        ("CELERY_WORKER_CONCURRENCY", "2"),
        ("CELERY_WORKER_SEND_TASK_EVENTS", "1"),
    ];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let program = r#"
from fleet import *
from flower_api import Flower

def state(result):
    return flower.get("/api/tasks").get(result.id, {}).get("state")

def becomes(result, expected):
    until(f"Flower shows {expected}", lambda: state(result) == expected)

with Flower() as flower:
    until("it is seen", lambda: flower.get("/api/workers?status=1").get("rust@story") is True)
    info = flower.get("/api/workers?refresh=1&workername=rust@story")["rust@story"]
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
          "worker": "rust@story", "state": "SUCCESS"})
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
    flower.post("/api/worker/pool/grow/rust@story?n=2")
    flower.post("/api/worker/pool/shrink/rust@story?n=1")
    becomes(long[2], "STARTED")
    flower.post("/api/worker/queue/add-consumer/rust@story?queue=more")
    same(get(send("tasks.add", (3, 4), queue="more")), 7)
    flower.post("/api/worker/queue/cancel-consumer/rust@story?queue=more")
    flower.post("/api/task/rate-limit/tasks.add", workername="rust@story", ratelimit="100/s")
    flower.post("/api/task/timeout/tasks.sleep", workername="rust@story", hard=300)
    info = flower.get("/api/workers?refresh=1&workername=rust@story")["rust@story"]
    same(len(info["stats"]["pool"]["processes"]), 3)
    same([queue["name"] for queue in info["active_queues"]], ["celery"])
    same({task["id"] for task in info["active"]}, {long[1].id, long[2].id})
    same(info["revoked"], [long[0].id])
    assert "tasks.add [rate_limit=100/s]" in info["registered"], info["registered"]
    for result in long[1:]:
        flower.post(f"/api/task/revoke/{result.id}?terminate=true&signal=SIGKILL")
        becomes(result, "REVOKED")
    flower.post("/api/worker/shutdown/rust@story")
    until("its end is seen", lambda: flower.get("/api/workers?status=1")["rust@story"] is False)
"#;
    setup.python(program).await;
    assert_eq!(worker.ended().await, Some(0));
    setup.assert_nothing_left().await;
}
