//! Isolated tasks, in child processes of the example `isolated`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use celery::{App, AsyncResult, Config, State, Task, TaskArgs, TaskFailure, Worker};
use serde::de::DeserializeOwned;

use crate::isolated_work::{
    ABORT, ADD, ALLOCATE, ASYNC_OBEY_SOFT_LIMIT, ASYNC_PID, BLOCK, CRASH, CRASH_ALWAYS, CRASH_ONCE,
    DELIVERY, ECHO, EXIT, GREET, HANG, OBEY_SHUTDOWN, OBEY_SOFT_LIMIT, PANIC, PARSE, PID,
    REPORT_AND_WAIT, RETRY, SET_FINAL_STATE, USE_STDIO, WAIT_FOR_FILE, WORKER_PID, tasks,
};
use crate::support::{
    RunningWorker, Setup, TIMEOUT, TempDir, WorkerProcess, eventually, example, for_each_broker,
    send_signal, within,
};

for_each_broker! {
    blocking_task_is_logged_and_last_line_has_counts: redis;
    terminal_interrupt_does_not_reach_children: redis;
    children_end_with_killed_worker: redis;
    always_crashing_task_fails_after_redelivery: redis, rabbitmq;
    worker_stores_results_of_children: redis, rpc;
    workers_of_one_program_have_separate_children: redis;
}

/// A worker in this process on the in-memory broker, with children that run the
/// example.
struct MemoryWorker {
    app: App,
    worker: RunningWorker,
}

impl MemoryWorker {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, u32)]) -> Self {
        let app = app(settings);
        let worker = RunningWorker::start(worker(&app)).await;
        Self { app, worker }
    }

    async fn send<A: TaskArgs, R>(&self, task: Task<A, R>, arguments: A) -> AsyncResult<R> {
        self.app.client().send(task, arguments).await.unwrap()
    }

    async fn call<A: TaskArgs, R: DeserializeOwned>(&self, task: Task<A, R>, arguments: A) -> R {
        let sent = self.send(task, arguments).await;
        sent.get_timeout(TIMEOUT).await.unwrap()
    }

    async fn failure<A: TaskArgs, R>(&self, task: Task<A, R>, arguments: A) -> TaskFailure
    where
        R: DeserializeOwned + std::fmt::Debug,
    {
        failure(&self.send(task, arguments).await).await
    }

    async fn stop(self) {
        self.worker.stop().await;
    }
}

fn app(settings: &[(&str, u32)]) -> App {
    let config = settings
        .iter()
        .fold(Config::new(), |config, (name, value)| {
            config.set(name, *value).unwrap()
        });
    App::memory().with_config(config)
}

/// Returns a worker with one slot, so that one child runs all tasks.
fn worker(app: &App) -> Worker {
    app.worker(tasks()).concurrency(1).child_command(&child())
}

fn child() -> Command {
    let mut command = Command::new(example("isolated"));
    command
        .args(["memory://", "memory://"])
        .env("RUST_LOG", "error");
    command
}

async fn failure<R: DeserializeOwned + std::fmt::Debug>(result: &AsyncResult<R>) -> TaskFailure {
    match result.get_timeout(TIMEOUT).await {
        Err(celery::ResultError::Task(failure)) => *failure,
        other => panic!("not a failure: {other:?}"),
    }
}

fn assert_lost(failure: &TaskFailure, how: &str) {
    let exception = &failure.exception;
    assert_eq!(exception.exc_type, "WorkerLostError");
    assert_eq!(exception.exc_module.as_deref(), Some("billiard.exceptions"));
    let message = exception.exc_message[0].as_str().unwrap();
    let expected = format!("Worker exited prematurely: {how} Job: ");
    assert!(message.starts_with(&expected), "{message}");
}

/// The folder in which tasks of the example write their process ids and wait for
/// a file.
struct PidDir(TempDir);

impl PidDir {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn path(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }

    /// Returns the process ids written so far.
    fn pids(&self) -> Vec<u32> {
        let names = fs::read_dir(self.0.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name());
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    async fn wait_for_pids(&self, count: usize) -> Vec<u32> {
        eventually("tasks have started", async || {
            Some(self.pids()).filter(|pids| pids.len() >= count)
        })
        .await
    }

    /// Ends the wait of tasks that wait for the file `go`.
    fn release(&self) {
        fs::write(self.0.path().join("go"), "").unwrap();
    }
}

/// Waits until the process has been reaped.
async fn wait_until_gone(pid: u32) {
    let path = format!("/proc/{pid}");
    eventually("the process has ended", async || {
        (!Path::new(&path).exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn tasks_run_in_their_declared_process() {
    let worker = MemoryWorker::start().await;
    let own = std::process::id();
    assert_eq!(worker.call(ADD, (2, 3)).await, 5);
    assert_eq!(worker.call(GREET, ("Ada".to_owned(),)).await, "Hello, Ada!");
    let child = worker.call(PID, ()).await;
    assert_ne!(child, own);
    assert_eq!(worker.call(ASYNC_PID, ()).await, child);
    assert_eq!(worker.call(WORKER_PID, ()).await, own);

    let call = DELIVERY.s(()).header("color", "blue");
    let origin = worker.app.client().apply(call).await.unwrap();
    let expected = ("celery".to_owned(), 0, "blue".to_owned());
    assert_eq!(origin.get_timeout(TIMEOUT).await.unwrap(), expected);
    worker.stop().await;
    wait_until_gone(child).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn isolated_worker_runs_all_tasks_in_children() {
    let app = app(&[]);
    let worker = RunningWorker::start(worker(&app).isolated()).await;
    let sent = app.client().send(WORKER_PID, ()).await.unwrap();
    let pid = sent.get_timeout(TIMEOUT).await.unwrap();
    assert_ne!(pid, std::process::id());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn crash_fails_one_task_and_next_task_runs() {
    let worker = MemoryWorker::start().await;
    let child = worker.call(PID, ()).await;
    let panic = worker.failure(PANIC, ("oh no".to_owned(),)).await;
    assert_eq!(panic.exception.to_string(), "Panic('oh no')");
    assert_eq!(
        worker.call(PID, ()).await,
        child,
        "a panic must not end the child"
    );

    assert_lost(&worker.failure(ABORT, ()).await, "signal 6 (SIGABRT)");
    assert_ne!(worker.call(PID, ()).await, child);
    let segv = worker.failure(CRASH, ("SEGV".to_owned(),)).await;
    assert_lost(&segv, "signal 11 (SIGSEGV)");
    assert_eq!(worker.call(ADD, (2, 3)).await, 5);
    assert_lost(&worker.failure(EXIT, (3,)).await, "exitcode 3");
    assert_eq!(worker.call(ADD, (2, 4)).await, 6);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn killed_child_is_replaced() {
    let worker = MemoryWorker::start().await;
    let folder = PidDir::new();
    let held = worker.send(WAIT_FOR_FILE, (folder.path(),)).await;
    let pids = folder.wait_for_pids(1).await;
    send_signal("KILL", &pids[0].to_string());
    assert_lost(&failure(&held).await, "signal 9 (SIGKILL)");

    // An idle child is killed; the worker may detect it before the next task or not.
    for _ in 0..5 {
        let idle = worker.call(PID, ()).await;
        send_signal("KILL", &idle.to_string());
        assert_ne!(worker.call(PID, ()).await, idle);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn hard_time_limit_kills_child() {
    let worker = MemoryWorker::start().await;
    let folder = PidDir::new();
    let call = HANG
        .s((folder.path(),))
        .time_limit(Duration::from_millis(500));
    let hung = worker.app.client().apply(call).await.unwrap();
    let failure = failure(&hung).await;
    assert_eq!(failure.exception.to_string(), "TimeLimitExceeded(0.5)");
    wait_until_gone(folder.pids()[0]).await;
    assert_eq!(worker.call(ADD, (2, 3)).await, 5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn soft_time_limit_is_handled_or_ends_child() {
    let worker = MemoryWorker::start().await;
    let child = worker.call(PID, ()).await;
    let soon = Duration::from_millis(500);
    for task in [OBEY_SOFT_LIMIT, ASYNC_OBEY_SOFT_LIMIT] {
        let call = task.s(()).soft_time_limit(soon);
        let obeyed = worker.app.client().apply(call).await.unwrap();
        assert_eq!(obeyed.get_timeout(TIMEOUT).await.unwrap(), "obeyed");
    }
    assert_eq!(worker.call(PID, ()).await, child);

    let folder = PidDir::new();
    let call = HANG.s((folder.path(),)).soft_time_limit(soon);
    let hung = worker.app.client().apply(call).await.unwrap();
    let failure = failure(&hung).await;
    assert_eq!(failure.exception.exc_type, "SoftTimeLimitExceeded");
    wait_until_gone(child).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn running_task_sees_worker_shutdown() {
    let worker = MemoryWorker::start().await;
    let folder = PidDir::new();
    let running = worker.send(OBEY_SHUTDOWN, (folder.path(),)).await;
    folder.wait_for_pids(1).await;
    worker.stop().await;
    assert_eq!(running.get_timeout(TIMEOUT).await.unwrap(), "obeyed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn child_updates_state_through_worker() {
    let worker = MemoryWorker::start().await;
    let folder = PidDir::new();
    let reported = worker.send(REPORT_AND_WAIT, (folder.path(),)).await;
    let pids = folder.wait_for_pids(1).await;
    // The task writes its process id after the state has been stored.
    let state = reported.state().await.unwrap();
    assert_eq!(state, State::Custom("WAITING".to_owned()));
    assert_eq!(reported.info().await.unwrap().as_str(), Some("for a file"));
    folder.release();
    assert_eq!(reported.get_timeout(TIMEOUT).await.unwrap(), pids[0]);
    let refused = worker.call(SET_FINAL_STATE, ()).await;
    assert!(refused.contains("the worker sets it"), "{refused}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn explicit_and_automatic_retries_run() {
    let worker = MemoryWorker::with(&[("result_extended", 1)]).await;
    assert_eq!(worker.call(RETRY, (2,)).await, 2);
    let exhausted = worker.failure(RETRY, (9,)).await;
    assert_eq!(exhausted.exception.to_string(), "ValueError('not yet')");

    assert_eq!(worker.call(PARSE, ("5".to_owned(),)).await, 5);
    let parsed = worker.send(PARSE, ("x".to_owned(),)).await;
    let failure = failure(&parsed).await;
    assert_eq!(failure.exception.exc_type, "ParseIntError");
    let traceback = failure.traceback.unwrap();
    assert!(traceback.contains("invalid digit"), "{traceback}");
    let document = parsed.document().await.unwrap().unwrap();
    assert_eq!(document.retries, Some(2));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn child_is_replaced_after_max_tasks() {
    let worker = MemoryWorker::with(&[("worker_max_tasks_per_child", 2)]).await;
    let mut pids = Vec::new();
    for _ in 0..6 {
        pids.push(worker.call(PID, ()).await);
    }
    assert!(pids.chunks(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    pids.dedup();
    assert_eq!(pids.len(), 3);
    wait_until_gone(pids[0]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn child_is_replaced_after_max_memory() {
    let worker = MemoryWorker::with(&[("worker_max_memory_per_child", 200 << 10)]).await;
    let child = worker.call(PID, ()).await;
    assert_eq!(worker.call(ALLOCATE, (1,)).await, child);
    assert_eq!(worker.call(ALLOCATE, (300,)).await, child);
    assert_ne!(worker.call(PID, ()).await, child);
    wait_until_gone(child).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn late_task_is_redelivered_after_child_loss() {
    let worker = MemoryWorker::start().await;
    let survived = worker.call(CRASH_ONCE, ("KILL".to_owned(),)).await;
    assert_eq!(survived, "survived");

    // The in-memory broker counts deliveries.
    let folder = PidDir::new();
    let lost = worker.failure(CRASH_ALWAYS, (folder.path(),)).await;
    assert_lost(&lost, "signal 9 (SIGKILL)");
    assert_eq!(folder.pids().len(), 5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn children_run_up_to_concurrency() {
    let app = app(&[]);
    let running = RunningWorker::start(worker(&app).concurrency(2)).await;
    let folder = PidDir::new();
    let client = app.client();
    let one = client.send(WAIT_FOR_FILE, (folder.path(),)).await.unwrap();
    let other = client.send(WAIT_FOR_FILE, (folder.path(),)).await.unwrap();
    let mut pids = folder.wait_for_pids(2).await;
    folder.release();
    let mut held = vec![
        one.get_timeout(TIMEOUT).await.unwrap(),
        other.get_timeout(TIMEOUT).await.unwrap(),
    ];
    pids.sort_unstable();
    held.sort_unstable();
    assert_eq!(held, pids);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn large_arguments_and_results_pass() {
    let worker = MemoryWorker::start().await;
    let text = "wide \u{1f40e} ".repeat(600_000);
    assert!(text.len() > 5_000_000);
    assert_eq!(worker.call(ECHO, (text.clone(),)).await, text);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn child_stdio_does_not_disturb_protocol() {
    let worker = MemoryWorker::start().await;
    assert_eq!(worker.call(USE_STDIO, ()).await, "");
    assert_eq!(worker.call(ADD, (2, 3)).await, 5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn invalid_child_program_fails_before_consuming() {
    let app = app(&[]);
    let sum = app.client().send(ADD, (2, 3)).await.unwrap();
    let own = app.worker(tasks());
    let missing = app
        .worker(tasks())
        .child_command(&Command::new("/no/such/program"));
    let other = app.worker(tasks()).child_command(&Command::new("true"));
    let mut chatty = Command::new("sh");
    chatty.args(["-c", "echo ready >&0; read line"]);
    let chatty = app.worker(tasks()).child_command(&chatty);
    for (worker, words) in [
        (own, ["test runner", "child_command"]),
        (missing, ["/no/such/program", "No such file"]),
        (other, ["true", "before its main called Worker::run_until"]),
        (chatty, ["sh", "sent an invalid handshake"]),
    ] {
        let ended = within("the worker fails", worker.run()).await;
        let error = ended.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let running = RunningWorker::start(worker(&app)).await;
    assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn repeated_crashes_leave_no_zombies() {
    let worker = MemoryWorker::start().await;
    for _ in 0..50 {
        let lost = worker.failure(CRASH, ("KILL".to_owned(),)).await;
        assert_lost(&lost, "signal 9 (SIGKILL)");
    }
    let child = worker.call(PID, ()).await;
    worker.stop().await;
    wait_until_gone(child).await;
    let own = std::process::id();
    eventually("no zombies are left", async || {
        let status = Command::new("sh")
            .args(["-c", "cat /proc/[0-9]*/stat 2>/dev/null"])
            .output()
            .unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let zombies = status
            .lines()
            .filter(|line| line.contains(&format!("(isolated) Z {own} ")));
        (zombies.count() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn dropped_worker_ends_its_children() {
    let app = app(&[]);
    let running = tokio::spawn(worker(&app).concurrency(2).run());
    let client = app.client();
    let idle = client.send(PID, ()).await.unwrap();
    let idle = idle.get_timeout(TIMEOUT).await.unwrap();
    let folder = PidDir::new();
    client.send(HANG, (folder.path(),)).await.unwrap();
    let busy = folder.wait_for_pids(1).await;
    running.abort();
    wait_until_gone(idle).await;
    wait_until_gone(busy[0]).await;
}

async fn blocking_task_is_logged_and_last_line_has_counts(setup: Setup) {
    let worker = WorkerProcess::start_example(&["isolated"], &setup, &[]).await;
    let client = setup.client();
    let blocking = client.send(BLOCK, (3_000,)).await.unwrap();
    blocking.get_timeout(TIMEOUT).await.unwrap();
    let named = format!("task isolated.block ({}) blocks the runtime", blocking.id());
    assert!(worker.log().contains(&named), "{}", worker.log());
    let short = client.send(BLOCK, (0,)).await.unwrap();
    short.get_timeout(TIMEOUT).await.unwrap();
    assert!(!worker.log().contains(short.id()), "{}", worker.log());

    let folder = PidDir::new();
    let running = client.send(OBEY_SHUTDOWN, (folder.path(),)).await.unwrap();
    folder.wait_for_pids(1).await;
    worker.signal("TERM");
    assert_eq!(running.get_timeout(TIMEOUT).await.unwrap(), "obeyed");
    eventually("the last line is logged", async || {
        let line = "worker stopped: 3 tasks run, 0 deliveries returned, 0 not settled, 0 in doubt";
        worker.log().contains(line).then_some(())
    })
    .await;
    assert_eq!(worker.wait().await, Some(0));
}

async fn terminal_interrupt_does_not_reach_children(setup: Setup) {
    let worker = WorkerProcess::start_example(&["isolated"], &setup, &[]).await;
    let client = setup.client();
    let folder = PidDir::new();
    let held = client.send(WAIT_FOR_FILE, (folder.path(),)).await.unwrap();
    let pids = folder.wait_for_pids(1).await;
    worker.signal_group("INT");
    eventually("the worker stops", async || {
        worker.log().contains("Warm shutdown").then_some(())
    })
    .await;
    folder.release();
    assert_eq!(held.get_timeout(TIMEOUT).await.unwrap(), pids[0]);
    assert_eq!(worker.wait().await, Some(0));
    wait_until_gone(pids[0]).await;
    setup.assert_drained().await;
}

async fn children_end_with_killed_worker(setup: Setup) {
    let settings = [("CELERY_WORKER_CONCURRENCY", "2")];
    let worker = WorkerProcess::start_example(&["isolated"], &setup, &settings).await;
    let client = setup.client();
    let folder = PidDir::new();
    client.send(HANG, (folder.path(),)).await.unwrap();
    let busy = folder.wait_for_pids(1).await;
    let idle = client.send(PID, ()).await.unwrap();
    let idle = idle.get_timeout(TIMEOUT).await.unwrap();
    assert_ne!(idle, busy[0]);
    worker.kill().await;
    wait_until_gone(busy[0]).await;
    wait_until_gone(idle).await;
}

/// Redis and RabbitMQ flag a redelivery, but do not count deliveries.
async fn always_crashing_task_fails_after_redelivery(setup: Setup) {
    let worker = WorkerProcess::start_example(&["isolated"], &setup, &[]).await;
    let folder = PidDir::new();
    let client = setup.client();
    let lost = client.send(CRASH_ALWAYS, (folder.path(),)).await.unwrap();
    assert_lost(&failure(&lost).await, "signal 9 (SIGKILL)");
    assert_eq!(folder.pids().len(), 2);
    let once = client.send(CRASH_ONCE, ("ABRT".to_owned(),)).await.unwrap();
    assert_eq!(once.get_timeout(TIMEOUT).await.unwrap(), "survived");
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
    setup.assert_drained().await;
}

async fn worker_stores_results_of_children(setup: Setup) {
    let worker = WorkerProcess::start_example(&["isolated"], &setup, &[]).await;
    let client = setup.client();
    let sum = client.send(ADD, (2, 3)).await.unwrap();
    assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), 5);
    let folder = PidDir::new();
    let reported = client
        .send(REPORT_AND_WAIT, (folder.path(),))
        .await
        .unwrap();
    let pids = folder.wait_for_pids(1).await;
    eventually("its state is stored", async || {
        let state = reported.state().await.unwrap();
        (state == State::Custom("WAITING".to_owned())).then_some(())
    })
    .await;
    folder.release();
    assert_eq!(reported.get_timeout(TIMEOUT).await.unwrap(), pids[0]);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
    assert_eq!(setup.depth("celery").await, 0);
}

async fn workers_of_one_program_have_separate_children(setup: Setup) {
    let urls = [setup.broker_url(), setup.result_backend_url()];
    let program = ["isolated", urls[0], urls[1], "one", "other"];
    let worker = WorkerProcess::start_example(&program, &setup, &[]).await;
    let client = setup.client();
    let mut pids = Vec::new();
    for queue in ["one", "other", "one", "other"] {
        let sent = client.apply(PID.s(()).queue(queue)).await.unwrap();
        pids.push(sent.get_timeout(TIMEOUT).await.unwrap());
    }
    assert_ne!(pids[0], pids[1]);
    assert_eq!(pids[..2], pids[2..]);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
    for pid in &pids[..2] {
        wait_until_gone(*pid).await;
    }
}
