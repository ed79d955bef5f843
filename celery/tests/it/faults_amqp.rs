//! RabbitMQ dies, falls silent, has no memory or no patience, in mid-work:
//! what was acknowledged is not lost, and work goes on soon after.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use celery::{
    Client, Config, ConnectionEvent, Queue, SendError, Task, TaskError, Tasks, Worker, WorkerError,
};
use test_servers::{Proxy, RabbitServer};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long anything may take that has to happen.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long work may take to resume on a machine that is busy with other tests.
/// Two seconds are promised; the figures are printed.
const SOON: Duration = Duration::from_secs(10);

const HOUR: Duration = Duration::from_secs(3_600);

/// Notes a number in the runs, after so many milliseconds.
const RECORD: Task<(i64, u64), i64> = Task::new("test.record").params(&["number", "after"]);

/// What ran, and when it ended.
#[derive(Clone, Default)]
struct RunLog {
    runs: Arc<Mutex<Vec<(i64, Instant)>>>,
}

impl RunLog {
    fn tasks(&self) -> Tasks {
        let runs = self.clone();
        Tasks::new().with(RECORD, move |number, after| {
            runs.clone().mark(number, after)
        })
    }

    async fn mark(self, number: i64, after: u64) -> Result<i64, TaskError> {
        tokio::time::sleep(Duration::from_millis(after)).await;
        self.runs.lock().unwrap().push((number, Instant::now()));
        Ok(number)
    }

    fn count(&self) -> usize {
        self.runs.lock().unwrap().len()
    }

    fn times(&self, number: i64) -> usize {
        let runs = self.runs.lock().unwrap();
        runs.iter().filter(|(ran, _)| *ran == number).count()
    }

    fn numbers(&self) -> HashSet<i64> {
        self.runs
            .lock()
            .unwrap()
            .iter()
            .map(|(number, _)| *number)
            .collect()
    }

    /// When the first task ended after this moment.
    fn first_after(&self, moment: Instant) -> Option<Instant> {
        let runs = self.runs.lock().unwrap();
        runs.iter()
            .map(|(_, time)| *time)
            .find(|time| *time > moment)
    }
}

/// A server that the test may break, and how its programs are configured.
struct Setup {
    server: Arc<RabbitServer>,
    config: Config,
}

impl Setup {
    async fn new() -> Self {
        let server = Arc::new(blocking(RabbitServer::start).await);
        let config = Config::new().broker_url(server.url());
        Self { server, config }
    }

    fn set(self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        let config = self.config.set(name, value.into()).unwrap();
        Self { config, ..self }
    }

    fn url(self, url: String) -> Self {
        Self {
            config: self.config.broker_url(url),
            ..self
        }
    }

    fn client(&self) -> Client {
        celery::connect(self.config.clone()).unwrap().client()
    }

    async fn serve(&self, runs: &RunLog) -> RunningWorker {
        self.serve_with(runs, |worker| worker.concurrency(4)).await
    }

    async fn serve_with(&self, runs: &RunLog, how: impl FnOnce(Worker) -> Worker) -> RunningWorker {
        let app = celery::connect(self.config.clone()).unwrap();
        RunningWorker::start(how(app.worker(runs.tasks()))).await
    }

    async fn on_server<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RabbitServer) -> T + Send + 'static,
    ) -> T {
        let server = Arc::clone(&self.server);
        blocking(move || work(&server)).await
    }

    async fn control(&self, words: &'static [&'static str]) -> String {
        self.on_server(move |server| server.control(words)).await
    }

    /// Takes away the server's memory, or gives it back.
    async fn memory(&self, is_there: bool) {
        let limit = if is_there { "0.6" } else { "0.00001" };
        let set =
            move |server: &RabbitServer| server.control(&["set_vm_memory_high_watermark", limit]);
        self.on_server(set).await;
        // It looks now and then only.
        eventually("the server notices", async || {
            let alarms = self.control(&["eval", "rabbit_alarm:get_alarms()."]).await;
            (alarms.contains("memory") != is_there).then_some(())
        })
        .await;
    }

    /// Ready and unacknowledged messages of a queue; none if there is none.
    async fn counts(&self, queue: &'static str) -> (usize, usize) {
        let rows = self.on_server(|server| {
            let columns = ["name", "messages_ready", "messages_unacknowledged"];
            server.list(&[&["list_queues"], &columns[..]].concat())
        });
        let rows = rows.await;
        let row = rows.iter().find(|row| row[0] == queue);
        row.map_or((0, 0), |row| {
            (row[1].parse().unwrap(), row[2].parse().unwrap())
        })
    }

    async fn assert_drained(&self) {
        eventually("nothing is left", async || {
            (self.counts("celery").await == (0, 0)).then_some(())
        })
        .await;
    }

    /// Messages in a queue, as AMQP tells it.
    async fn depth(&self, queue: &str) -> u64 {
        let app = celery::connect(self.config.clone()).unwrap();
        let depth = app.broker().depth(&Queue::new(queue)).await.unwrap();
        app.close().await;
        depth
    }
}

/// A worker inside this process, connected.
struct RunningWorker {
    stop: oneshot::Sender<()>,
    links: watch::Receiver<Links>,
    worker: JoinHandle<Result<(), WorkerError>>,
}

/// How often the worker was connected, and how often it lost that.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    made: usize,
    lost: usize,
}

impl RunningWorker {
    async fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (count, mut links) = watch::channel(Links::default());
        let worker = worker
            .on_connection_event(move |event| {
                count.send_modify(|links| match event {
                    ConnectionEvent::Lost(error) => {
                        println!("the worker lost its connection: {error}");
                        links.lost += 1;
                    }
                    _ => links.made += 1,
                });
            })
            .run_until(async { stopped.await.unwrap_or(()) });
        let worker = tokio::spawn(worker);
        let connected = links.wait_for(|links| links.made > 0);
        within("a worker connects", connected)
            .await
            .expect("the worker runs");
        Self {
            stop,
            links,
            worker,
        }
    }

    /// Waits until the worker has lost its connection so often.
    async fn lost(&mut self, times: usize) {
        let lost = self.links.wait_for(|links| links.lost >= times);
        within("the worker notices", lost)
            .await
            .expect("the worker runs");
    }

    /// Stops warmly.
    async fn stop(self) {
        let _ = self.stop.send(());
        within("the worker stops", self.worker)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {TIMEOUT:?}: {what}"),
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, found).await
}

/// Sends numbers until it is told to stop; answers those that were taken.
async fn produce(client: Client, mut stop: oneshot::Receiver<()>) -> Vec<i64> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while stop.try_recv().is_err() {
        number += 1;
        // A failed one may have arrived all the same; it does not count.
        if client.send(RECORD, (number, 5)).await.is_ok() {
            acknowledged.push(number);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}

/// Waits until everything has run that was acknowledged, and prints figures.
async fn assert_all_ran(what: &str, runs: &RunLog, acknowledged: &[i64]) {
    eventually("all have run that were acknowledged", async || {
        let ran = runs.numbers();
        acknowledged
            .iter()
            .all(|number| ran.contains(number))
            .then_some(())
    })
    .await;
    let (runs, ran) = (runs.count(), runs.numbers().len());
    println!(
        "{what}: {} acknowledged, {ran} ran, {} of them twice",
        acknowledged.len(),
        runs - ran
    );
}

/// Waits until the server talks AMQP; answers when it did.
async fn handshake(port: u16) -> Instant {
    blocking(move || {
        let greet = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"AMQP\x00\x00\x09\x01")?;
            stream.read_exact(&mut [0])
        };
        let started = Instant::now();
        while greet().is_err() {
            assert!(started.elapsed() < TIMEOUT, "the server does not come back");
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn killed_rabbitmq_loses_no_task() {
    let setup = Setup::new().await.set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let (stop, stopped) = oneshot::channel();
    let producer = tokio::spawn(produce(setup.client(), stopped));
    let mut delays = Vec::new();
    for round in 1..=5 {
        let before = runs.count();
        eventually("work goes on", async || {
            (runs.count() > before + 100).then_some(())
        })
        .await;
        setup.on_server(RabbitServer::kill).await;
        worker.lost(round).await;
        let (back, ()) = tokio::join!(
            handshake(setup.server.port()),
            setup.on_server(RabbitServer::restart)
        );
        let first = eventually("tasks run again", async || runs.first_after(back)).await;
        delays.push(first - back);
        println!(
            "kill {round} of RabbitMQ: the first task {:?} after its return",
            first - back
        );
    }
    stop.send(()).unwrap();
    let acknowledged = within("the producer ends", producer).await.unwrap();
    assert_all_ran("five kills", &runs, &acknowledged).await;
    worker.stop().await;
    setup.assert_drained().await;
    assert!(delays.iter().all(|delay| *delay <= SOON), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn closed_connections_lose_no_task() {
    let setup = Setup::new().await.set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let (stop, stopped) = oneshot::channel();
    let producer = tokio::spawn(produce(setup.client(), stopped));
    for round in 1..=5 {
        let before = runs.count();
        eventually("work goes on", async || {
            (runs.count() > before + 50).then_some(())
        })
        .await;
        setup
            .control(&["close_all_connections", "maintenance"])
            .await;
        worker.lost(round).await;
        let lost = Instant::now();
        let first = eventually("tasks run again", async || runs.first_after(lost)).await;
        println!(
            "closing {round}: the next task {:?} after the worker noticed",
            first - lost
        );
        assert!(first - lost < SOON);
    }
    stop.send(()).unwrap();
    let acknowledged = within("the producer ends", producer).await.unwrap();
    assert_all_ran("five closings", &runs, &acknowledged).await;
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn memory_alarm_fails_sends_and_worker_continues() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let setup = Setup::new()
        .await
        .set("deadline", DEADLINE.as_secs())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let client = setup.client();
    for sent in client
        .apply_all((0..300).map(|number| RECORD.s((number, 20))))
        .await
    {
        sent.unwrap();
    }
    let worker = setup.serve(&runs).await;
    eventually("it works", async || (runs.count() > 20).then_some(())).await;
    setup.memory(false).await;
    let short = Instant::now();

    for _ in 0..3 {
        let started = Instant::now();
        let error = client.send(RECORD, (1_000, 0)).await.unwrap_err();
        assert!(
            started.elapsed() < DEADLINE + Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        assert!(
            error.is_transient() && error.to_string().contains("memory"),
            "{error}"
        );
    }
    let many: Vec<_> = (0..40)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(RECORD, (1_000, 0)).await.unwrap_err() })
        })
        .collect();
    for one in many {
        let error = within("an error in time", one).await.unwrap();
        assert!(matches!(error, SendError::Broker { .. }), "{error}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
    eventually("what was sent before has run", async || {
        (0..300).all(|number| runs.times(number) > 0).then_some(())
    })
    .await;
    println!("without memory for {:?}", short.elapsed());
    setup.memory(true).await;

    let back = Instant::now();
    eventually("tasks are taken again", async || {
        client.send(RECORD, (2_000, 0)).await.ok()
    })
    .await;
    eventually("it runs", async || (runs.times(2_000) == 1).then_some(())).await;
    println!("the first task {:?} after there was memory", back.elapsed());
    assert!(back.elapsed() < SOON, "{:?}", back.elapsed());
    worker.stop().await;
    setup.assert_drained().await;
}

/// A worker that cannot put off what is not due yet goes on with what is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn memory_alarm_on_delayed_tasks_does_not_stop_due_tasks() {
    let setup = Setup::new().await;
    let runs = RunLog::default();
    let client = setup.client();
    let calls = (0..200).map(|number| match number % 10 {
        9 => RECORD.s((number, 5)).countdown(HOUR),
        _ => RECORD.s((number, 5)),
    });
    for sent in client.apply_all(calls).await {
        sent.unwrap();
    }
    setup.memory(false).await;
    let worker = setup
        .serve_with(&runs, |worker| worker.concurrency(10))
        .await;

    let started = Instant::now();
    let ran = async {
        eventually("those for now have run", async || {
            (runs.count() == 180).then_some(())
        })
        .await
    };
    let ran = tokio::time::timeout(Duration::from_secs(20), ran).await;
    println!(
        "without memory {} of 180 tasks ran within {:?}",
        runs.count(),
        started.elapsed()
    );
    setup.memory(true).await;
    setup.assert_drained().await;
    // Whatever is not in the queue is in hand, and runs at last.
    let at_last =
        async { eventually("", async || (runs.numbers().len() == 180).then_some(())).await };
    let at_last = tokio::time::timeout(Duration::from_secs(10), at_last).await;
    println!("links: {:?}", *worker.links.borrow());
    worker.stop().await;
    assert!(
        at_last.is_ok(),
        "{} of 180 are lost",
        180 - runs.numbers().len()
    );
    assert_eq!(
        setup.depth("celery_delayed_11").await,
        20,
        "waiting for later"
    );
    assert!(ran.is_ok(), "tasks for later stop those for now");
}

/// Whoever may not declare what the delay needs has no delayed tasks, but all
/// others run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn undelayable_tasks_do_not_lose_other_tasks() {
    let setup = Setup::new().await;
    setup.control(&["add_user", "ann", "word"]).await;
    setup
        .control(&["set_permissions", "ann", "^celery$", ".*", ".*"])
        .await;
    let url = setup.server.url().replace("guest:guest@", "ann:word@");
    let setup = setup.url(url);
    let runs = RunLog::default();
    let client = setup.client();
    let calls = (0..200).map(|number| match number % 4 {
        3 => RECORD.s((number, 1)).countdown(Duration::from_secs(4)),
        _ => RECORD.s((number, 1)),
    });
    for sent in client.apply_all(calls).await {
        sent.unwrap();
    }
    let worker = setup.serve(&runs).await;
    // What is not run yet waits somewhere; what neither ran nor waits is lost.
    let settled = async {
        eventually("all have run", async || {
            (runs.numbers().len() == 200).then_some(())
        })
        .await;
    };
    let settled = tokio::time::timeout(Duration::from_secs(12), settled).await;
    let (ready, unacked) = setup.counts("celery").await;
    let ran = runs.numbers();
    let now = (0..200)
        .filter(|number| number % 4 != 3 && ran.contains(number))
        .count();
    println!(
        "{now} of 150 for now ran, {} of 50 for later; {ready} ready, {unacked} unacknowledged",
        ran.len() - now
    );
    assert_eq!(now, 150, "lost tasks that were acknowledged and never ran");
    assert!(settled.is_ok(), "tasks for later are never run");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(unix)]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn unresponsive_rabbitmq_times_out_and_worker_resumes() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let silence = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(8),
    };
    let setup = Setup::new()
        .await
        .set("deadline", DEADLINE.as_secs())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let worker = setup.serve(&runs).await;
    let client = setup.client();
    client.send(RECORD, (0, 0)).await.unwrap();
    eventually("it runs", async || (runs.times(0) == 1).then_some(())).await;

    setup.on_server(RabbitServer::pause).await;
    let paused = Instant::now();
    while paused.elapsed() < silence {
        let started = Instant::now();
        let sends = (0..8).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(RECORD, (1, 0)).await })
        });
        for sent in sends.collect::<Vec<_>>() {
            let error = within("an error in time", sent).await.unwrap().unwrap_err();
            assert!(error.is_transient(), "{error}");
        }
        assert!(
            started.elapsed() < DEADLINE + Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
    }
    setup.on_server(RabbitServer::resume).await;

    let back = Instant::now();
    eventually("tasks are taken again", async || {
        client.send(RECORD, (2, 0)).await.ok()
    })
    .await;
    let sent = back.elapsed();
    eventually("it runs", async || (runs.times(2) == 1).then_some(())).await;
    println!(
        "after a silence of {silence:?} a task was taken after {sent:?} and had run after {:?}",
        back.elapsed()
    );
    assert!(back.elapsed() < SOON, "{:?}", back.elapsed());
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn heartbeat_detects_silent_network_and_worker_resumes() {
    let setup = Setup::new().await.set("task_acks_late", true);
    let network = Proxy::to(setup.server.port());
    let client = setup.client();
    let url = format!("amqp://127.0.0.1:{}?heartbeat=1", network.port());
    let setup = setup.url(url);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    client.send(RECORD, (1, 0)).await.unwrap();
    eventually("it runs", async || (runs.times(1) == 1).then_some(())).await;
    // In hand while the network goes.
    client.send(RECORD, (2, 4_000)).await.unwrap();
    eventually("it is taken", async || {
        (setup.counts("celery").await == (0, 1)).then_some(())
    })
    .await;

    network.silence();
    let silent = Instant::now();
    worker.lost(1).await;
    let noticed = silent.elapsed();
    network.heal();
    let healed = Instant::now();
    client.send(RECORD, (3, 0)).await.unwrap();
    eventually("it runs", async || (runs.times(3) == 1).then_some(())).await;
    println!(
        "noticed after {noticed:?} with heartbeats of 1 s; the next task {:?} after the healing",
        healed.elapsed()
    );
    assert!(noticed < SOON, "{noticed:?}");
    assert!(
        healed.elapsed() < SOON + Duration::from_secs(2),
        "{:?}",
        healed.elapsed()
    );
    worker.stop().await;
    // RabbitMQ notices by its own heartbeats, and gives the other one again.
    println!("the task in hand ran {} times", runs.times(2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_queue_is_consumed_again() {
    let setup = Setup::new().await;
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let client = setup.client();
    for round in 1..=3 {
        client.send(RECORD, (round, 0)).await.unwrap();
        eventually("it runs", async || (runs.times(round) == 1).then_some(())).await;
        let later = RECORD
            .s((100 + round, 0))
            .countdown(Duration::from_millis(1_500));
        client.apply(later).await.unwrap();
        eventually("the one for later runs", async || {
            (runs.times(100 + round) == 1).then_some(())
        })
        .await;
        setup.control(&["delete_queue", "celery"]).await;
        worker.lost(round as usize).await;
    }
    client.send(RECORD, (0, 0)).await.unwrap();
    eventually("it runs", async || (runs.times(0) == 1).then_some(())).await;
    worker.stop().await;
    setup.assert_drained().await;
}

/// RabbitMQ closes the channel of who holds a message for too long.
async fn fast_restore() -> Setup {
    let setup = Setup::new().await.set("task_acks_late", true);
    for set in [
        "application:set_env(rabbit, consumer_timeout, 3000).",
        "application:set_env(rabbit, channel_tick_interval, 1000).",
    ] {
        setup
            .on_server(move |server| server.control(&["eval", set]))
            .await;
    }
    setup
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn task_over_consumer_timeout_runs_once_beside_others() {
    let setup = fast_restore().await;
    let runs = RunLog::default();
    let client = setup.client();
    let mut worker = setup.serve(&runs).await;
    client.send(RECORD, (0, 10_000)).await.unwrap();
    let mut short = 0;
    while runs.times(0) == 0 {
        short += 1;
        client.send(RECORD, (short, 20)).await.unwrap();
        eventually("a short one runs", async || {
            (runs.times(short) > 0).then_some(())
        })
        .await;
        assert!(short < 5_000, "the long task never ends");
    }
    worker.lost(1).await;
    setup.assert_drained().await;
    let twice = (1..=short).filter(|number| runs.times(*number) > 1).count();
    println!(
        "{short} short tasks beside the long one, {twice} of them twice; lost {:?}",
        *worker.links.borrow()
    );
    assert_eq!(runs.times(0), 1, "the long task");
    worker.stop().await;
    assert_eq!(runs.times(0), 1, "the long task");
}

/// The same where the worker takes nothing while it runs: then it learns of
/// the end of its channel only when it acknowledges. With many queues it takes
/// a while until it has a new one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn task_over_consumer_timeout_runs_once_alone() {
    let setup = fast_restore().await;
    let runs = RunLog::default();
    let client = setup.client();
    let queues = (0..40).map(|number| format!("other-{number}"));
    let worker = setup
        .serve_with(&runs, |worker| {
            let worker = worker.concurrency(1).prefetch_multiplier(1).queue("celery");
            queues.fold(worker, Worker::queue)
        })
        .await;
    client.send(RECORD, (1, 6_000)).await.unwrap();
    client.send(RECORD, (2, 0)).await.unwrap();
    eventually("the next one runs", async || {
        (runs.times(2) > 0).then_some(())
    })
    .await;
    // A message that was left would run meanwhile.
    client.send(RECORD, (3, 6_000)).await.unwrap();
    eventually("the last one runs", async || {
        (runs.times(3) > 0).then_some(())
    })
    .await;
    setup.assert_drained().await;
    worker.stop().await;
    assert_eq!([1, 2, 3].map(|number| runs.times(number)), [1, 1, 1]);
}
