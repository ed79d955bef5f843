//! Interoperability with aio-celery, an independent worker and client in Python,
//! with RabbitMQ as broker and results on Redis.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use celery::{Map, ResultError, Signature, Value};
use test_servers::{PYTHON, ProcessGroup, poll_until};

use crate::support::{
    LANGUAGE, RECORD, RETRY_TIMES, RunLog, RunningWorker, Setup, TIMEOUT, blocking, eventually,
    for_each_broker, test_tasks,
};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, FAIL};

for_each_broker! {
    aio_worker_runs_tasks_of_rust_client: rabbitmq;
    aio_client_calls_rust_worker: rabbitmq;
    priorities_are_ordered_alike_by_aio_and_rust: rabbitmq;
    chain_runs_through_rust_python_and_aio_workers: rabbitmq;
}

async fn aio_worker_runs_tasks_of_rust_client(setup: Setup) {
    let worker = AioWorker::start(&setup, 4).await;
    let client = setup.client();
    let sum = client.send(ADD, (Int(2), Int(3))).await.unwrap();
    assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), Int(5));

    let args = ("ünï", 1, 0.5, Value::Null, vec![1, 2]);
    let kwargs = Map::from([("ключ", "значение")]);
    let call = Signature::named("tasks.echo", args, kwargs.clone());
    let echo = client.apply(call).await.unwrap();
    let echo = echo.get_timeout(TIMEOUT).await.unwrap();
    assert_eq!(echo.get("args").unwrap().as_array().unwrap().len(), 5);
    assert_eq!(echo.get("kwargs"), Some(&kwargs.into()));

    let failed = client.send(FAIL, ("as asked".to_owned(),)).await.unwrap();
    let failure = match failed.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(failure.exception.to_string(), "ValueError('as asked')");

    let begun = SystemTime::now();
    let later = begun + std::time::Duration::from_secs(1);
    let later = client.apply(LANGUAGE.s(()).eta(later)).await.unwrap();
    let again = client.send(RETRY_TIMES, (2, 0.2)).await.unwrap();
    assert_eq!(later.get_timeout(TIMEOUT).await.unwrap(), "aio");
    assert!(begun.elapsed().unwrap().as_secs() >= 1);
    assert_eq!(again.get_timeout(TIMEOUT).await.unwrap(), 2);
    worker.assert_no_errors();
}

async fn aio_client_calls_rust_worker(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let program = r#"
import time

async def main():
    same(await call("tasks.add", 2, 3), 5)
    same(await call("tasks.echo", "ünï", None, kwargs={"ключ": [1.5]}),
         {"args": ["ünï", None], "kwargs": {"ключ": [1.5]}})
    begun = time.time()
    ran = await call("test.now", countdown=1.0)
    assert begun + 1 <= ran <= begun + 2.5, ran - begun
    same(await asyncio.wait_for(final(await send("test.retry", 2)), TIMEOUT), 2)
    same(sorted(await asyncio.gather(*[call("tasks.add", n, n) for n in range(100)])),
         [2 * n for n in range(100)])

    failed = await send("tasks.fail", "as asked")
    error = await failed.get(timeout=TIMEOUT)
    same((await failed.state, error["exc_type"], error["exc_message"]),
         ("FAILURE", "ValueError", ["as asked"]))
    # The client declares the queue that the Rust worker has declared with the same arguments.
    same(await call("test.language", queue="another"), "rust")

run(main)
"#;
    let another = setup.app().worker(test_tasks()).queue("another");
    let another = RunningWorker::start(another).await;
    setup.aio_python(program).await;
    another.stop().await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn priorities_are_ordered_alike_by_aio_and_rust(setup: Setup) {
    let setup = setup.set_both("task_queue_max_priority", 10);
    let program = r#"
async def main():
    for number, priority in enumerate([2, 9, None, 10, 5]):
        await send("test.record", number, priority=priority)

run(main)
"#;
    setup.aio_python(program).await;
    let runs = RunLog::default();
    let worker = setup.app().worker(runs.tasks()).concurrency(1);
    let worker = RunningWorker::start(worker.prefetch_multiplier(1)).await;
    eventually("all tasks have run", async || {
        (runs.numbers().len() == 5).then_some(())
    })
    .await;
    assert_eq!(runs.numbers(), [3, 1, 4, 0, 2]);
    worker.stop().await;

    let client = setup.client();
    for (number, priority) in [(0, 2), (1, 9), (2, 0), (3, 10), (4, 5)] {
        let mark = RECORD.s((number, 0)).task_id(format!("mark-{number}"));
        client.apply(mark.priority(priority)).await.unwrap();
    }
    let worker = AioWorker::start(&setup, 1).await;
    setup.assert_drained().await;
    let log = worker.log();
    let places = [3, 1, 4, 0, 2].map(|number| log.find(&format!("[mark-{number}] received")));
    assert!(
        places.is_sorted() && places[0].is_some(),
        "{places:?}\n{log}"
    );
    worker.assert_no_errors();
}

async fn chain_runs_through_rust_python_and_aio_workers(setup: Setup) {
    let rust = setup.app().worker(test_tasks()).queue("rust");
    let rust = RunningWorker::start(rust).await;
    let python = setup.python_worker().queues(&["python"]);
    let python = crate::support::start_python(python).await;
    let aio = AioWorker::start(&setup, 4).await;

    let program = r#"
def hop(queue, *args):
    return signature("test.hop", args, queue=queue, task_id=f"hop-{queue}")

async def main():
    # aio-celery sends the first step to the queue of the chain.
    await chain(hop("rust", []), hop("celery"), hop("python"), queue="rust").apply_async()
    last = app.AsyncResult("hop-python")
    same(await last.get(timeout=TIMEOUT), ["rust", "aio", "python"])

run(main)
"#;
    setup.aio_python(program).await;
    let celery_program = r#"
hop = lambda queue, *args: app.signature("test.hop", args, queue=queue)
path = (hop("celery", []) | hop("rust") | hop("python") | hop("celery") | hop("rust")).apply_async()
same(get(path), ["aio", "rust", "python", "aio", "rust"])
"#;
    setup.python(celery_program).await;
    rust.stop().await;
    python.terminate();
    aio.assert_no_errors();
}

/// A worker of `python/aio.py` on the queue `celery`. Killed when dropped.
struct AioWorker {
    _group: ProcessGroup,
    log: PathBuf,
}

impl AioWorker {
    async fn start(setup: &Setup, concurrency: u32) -> Self {
        let log = setup.new_log();
        let output = File::create(&log).unwrap();
        let mut command = Command::new(std::env::var_os(PYTHON).expect(PYTHON));
        command
            .args(["-m", "aio_celery", "worker", "aio:app"])
            .args(["--concurrency", &concurrency.to_string()])
            .envs(setup.environment())
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        blocking(move || {
            let _group = ProcessGroup::spawn(&mut command).unwrap();
            let worker = Self { _group, log };
            let ready = || worker.log().contains("Waiting for messages").then_some(());
            assert!(poll_until(TIMEOUT, ready).is_some(), "{}", worker.log());
            worker
        })
        .await
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asserts that the log has no errors other than those of `tasks.fail`.
    fn assert_no_errors(self) {
        let log = self.log();
        let errors = log.lines().filter(|line| line.contains("[ERROR]"));
        let unexpected: Vec<_> = errors.filter(|line| !line.contains("tasks.fail")).collect();
        assert!(unexpected.is_empty(), "{log}");
    }
}
