//! aio-celery, another worker and client in Python: RabbitMQ as broker, results
//! on Redis.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use celery::{Map, ResultError, Signature, Value};
use test_servers::{PYTHON, ProcessGroup, poll_until};

use crate::support::{
    AGAIN, Ledger, MARK, PATIENCE, Running, Setup, WHO, blocking, eventually, stories, story,
};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, FAIL};

stories! {
    its_worker_runs_our_tasks: rabbitmq;
    its_client_calls_our_worker: rabbitmq;
    its_priorities_are_ours: rabbitmq;
    chains_run_through_all_three: rabbitmq;
}

async fn its_worker_runs_our_tasks(setup: Setup) {
    let worker = AioWorker::start(&setup, 4).await;
    let client = setup.client();
    let sum = client.send(ADD, (Int(2), Int(3))).await.unwrap();
    assert_eq!(sum.get_timeout(PATIENCE).await.unwrap(), Int(5));

    let args = ("ünï", 1, 0.5, Value::Null, vec![1, 2]);
    let kwargs = Map::from([("ключ", "значение")]);
    let call = Signature::named("tasks.echo", args, kwargs.clone());
    let echo = client.apply(call).await.unwrap();
    let echo = echo.get_timeout(PATIENCE).await.unwrap();
    assert_eq!(echo.get("args").unwrap().as_array().unwrap().len(), 5);
    assert_eq!(echo.get("kwargs"), Some(&kwargs.into()));

    let failed = client.send(FAIL, ("as asked".to_owned(),)).await.unwrap();
    let failure = match failed.get_timeout(PATIENCE).await {
        Err(ResultError::Task(failure)) => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(failure.exception.to_string(), "ValueError('as asked')");

    let begun = SystemTime::now();
    let later = begun + std::time::Duration::from_secs(1);
    let later = client.apply(WHO.s(()).eta(later)).await.unwrap();
    let again = client.send(AGAIN, (2, 0.2)).await.unwrap();
    assert_eq!(later.get_timeout(PATIENCE).await.unwrap(), "aio");
    assert!(begun.elapsed().unwrap().as_secs() >= 1);
    assert_eq!(again.get_timeout(PATIENCE).await.unwrap(), 2);
    worker.assert_content();
}

async fn its_client_calls_our_worker(setup: Setup) {
    let worker = setup.serve(story()).await;
    let program = r#"
import time

async def main():
    same(await call("tasks.add", 2, 3), 5)
    same(await call("tasks.echo", "ünï", None, kwargs={"ключ": [1.5]}),
         {"args": ["ünï", None], "kwargs": {"ключ": [1.5]}})
    begun = time.time()
    ran = await call("story.now", countdown=1.0)
    assert begun + 1 <= ran <= begun + 2.5, ran - begun
    same(await asyncio.wait_for(final(await send("story.again", 2)), PATIENCE), 2)
    same(sorted(await asyncio.gather(*[call("tasks.add", n, n) for n in range(100)])),
         [2 * n for n in range(100)])

    failed = await send("tasks.fail", "as asked")
    error = await failed.get(timeout=PATIENCE)
    same((await failed.state, error["exc_type"], error["exc_message"]),
         ("FAILURE", "ValueError", ["as asked"]))
    # Its first task declares the queue: ours did before, in the same way.
    same(await call("story.who", queue="another"), "rust")

run(main)
"#;
    let another = setup.app().worker(story()).queue("another");
    let another = Running::start(another).await;
    setup.aio(program).await;
    another.stop().await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn its_priorities_are_ours(setup: Setup) {
    let setup = setup.with("task_queue_max_priority", 10);
    let program = r#"
async def main():
    for number, priority in enumerate([2, 9, None, 10, 5]):
        await send("story.mark", number, priority=priority)

run(main)
"#;
    setup.aio(program).await;
    let ledger = Ledger::default();
    let worker = setup.app().worker(ledger.tasks()).concurrency(1);
    let worker = Running::start(worker.prefetch_multiplier(1)).await;
    eventually("all have run", async || {
        (ledger.numbers().len() == 5).then_some(())
    })
    .await;
    assert_eq!(ledger.numbers(), [3, 1, 4, 0, 2]);
    worker.stop().await;

    let client = setup.client();
    for (number, priority) in [(0, 2), (1, 9), (2, 0), (3, 10), (4, 5)] {
        let mark = MARK.s((number, 0)).task_id(format!("mark-{number}"));
        client.apply(mark.priority(priority)).await.unwrap();
    }
    let worker = AioWorker::start(&setup, 1).await;
    setup.assert_nothing_left().await;
    let log = worker.log();
    let places = [3, 1, 4, 0, 2].map(|number| log.find(&format!("[mark-{number}] received")));
    assert!(
        places.is_sorted() && places[0].is_some(),
        "{places:?}\n{log}"
    );
    worker.assert_content();
}

async fn chains_run_through_all_three(setup: Setup) {
    let ours = setup.app().worker(story()).queue("rust");
    let ours = Running::start(ours).await;
    let python = setup.python_worker().queues(&["python"]);
    let python = crate::support::start(python).await;
    let aio = AioWorker::start(&setup, 4).await;

    let program = r#"
def hop(queue, *args):
    return signature("story.hop", args, queue=queue, task_id=f"hop-{queue}")

async def main():
    # It sends the first one where the chain goes.
    await chain(hop("rust", []), hop("celery"), hop("python"), queue="rust").apply_async()
    last = app.AsyncResult("hop-python")
    same(await last.get(timeout=PATIENCE), ["rust", "aio", "python"])

run(main)
"#;
    setup.aio(program).await;
    let celerys = r#"
hop = lambda queue, *args: app.signature("story.hop", args, queue=queue)
path = (hop("celery", []) | hop("rust") | hop("python") | hop("celery") | hop("rust")).apply_async()
same(get(path), ["aio", "rust", "python", "aio", "rust"])
"#;
    setup.python(celerys).await;
    ours.stop().await;
    python.terminate();
    aio.assert_content();
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
            assert!(poll_until(PATIENCE, ready).is_some(), "{}", worker.log());
            worker
        })
        .await
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Nothing has gone wrong but what was asked for.
    fn assert_content(self) {
        let log = self.log();
        let complaints = log.lines().filter(|line| line.contains("[ERROR]"));
        let unexpected: Vec<_> = complaints
            .filter(|line| !line.contains("tasks.fail"))
            .collect();
        assert!(unexpected.is_empty(), "{log}");
    }
}
