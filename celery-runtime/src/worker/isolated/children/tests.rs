//! Tests with child processes that are this test program, restricted to the test
//! [`child`].

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use celery_protocol::{Accept, Raw, Serializer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::env;
use crate::execution::{BlockingPool, RunResult, Tasks, WorkerContext};
use crate::task::Task;
use crate::worker::isolated::children::*;
use crate::worker::isolated::is_isolated_child;
use crate::worker::isolated::program::ChildCommand;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for a file `go` in the folder.
const HOLD: Task<(String,), ()> = Task::new("hold");
/// Waits for SIGTERM, creates a file `received` in the folder, and keeps running.
const STUBBORN: Task<(String,), ()> = Task::new("stubborn");

/// The entry point of the children; it does nothing in the test process.
#[test]
fn child() {
    if !is_isolated_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = Tasks::new()
        .with_isolated(HOLD, hold)
        .with_isolated_async(STUBBORN, stubborn);
    runtime.block_on(App::memory().worker(tasks).run()).unwrap();
}

fn hold(folder: String) -> Result<(), Infallible> {
    let go = PathBuf::from(folder).join("go");
    while !go.exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

async fn stubborn(folder: String) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    std::fs::write(Path::new(&folder).join("started"), "")?;
    terminate.recv().await;
    std::fs::write(Path::new(&folder).join("received"), "")?;
    std::future::pending().await
}

fn children(size: usize) -> Arc<Children> {
    // The output of the child's test run is discarded.
    let code = "exec \"$0\" --exact worker::isolated::children::tests::child > /dev/null";
    let mut command = Command::new("sh");
    command
        .args(["-c", code])
        .arg(std::env::current_exe().unwrap());
    let program = Program::find(Some(ChildCommand::from(&command))).unwrap();
    let config = ChildConfig {
        hostname: "celery@test".to_owned(),
        result_serializer: "json".to_owned(),
        result_extended: false,
        body_limit: 1 << 20,
    };
    let limits = ChildLimits {
        max_tasks: None,
        max_memory: None,
        deadline: TIMEOUT,
    };
    Children::new(program, "test".to_owned(), config, limits, size)
}

fn job(task: &Task<(String,), ()>, folder: &Path) -> Arc<Job> {
    let arguments = (folder.to_str().unwrap(),);
    let args = Raw::encode(Serializer::Json, &arguments).unwrap();
    let services = Arc::new(WorkerContext {
        store: None,
        backend: None,
        hostname: "celery@test".to_owned(),
        accept: Accept::json(),
        body_limit: 1 << 20,
        result_serializer: Serializer::Json,
        result_extended: false,
        blocking: BlockingPool::new(1),
        client: App::memory().client(),
        registry: Arc::default(),
        chord_retry_interval: Duration::ZERO,
    });
    let kwargs = Raw::json("{}");
    let job = Job::in_place(services, "id-1", task.name().into(), &args, &kwargs, None);
    Arc::new(job.unwrap())
}

fn run(children: &Arc<Children>, job: &Arc<Job>) -> JoinHandle<RunResult> {
    let (children, job) = (Arc::clone(children), Arc::clone(job));
    tokio::spawn(async move {
        match children.run(&job).await {
            ChildRun::Ended(returned) => returned,
            ChildRun::Lost(loss) => panic!("{loss:?}"),
        }
    })
}

fn folder() -> PathBuf {
    let name = format!("celery-children-{}", env::uuid());
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

/// Waits until the state of the pool matches.
async fn until(children: &Children, what: &str, matches: impl Fn(&ChildrenStats) -> bool) {
    let matching = async {
        while !matches(&children.stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(TIMEOUT, matching).await;
    assert!(in_time.is_ok(), "{what}: {:?}", children.stats());
}

async fn until_exists(path: PathBuf) {
    let existing = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(TIMEOUT, existing).await;
    assert!(in_time.is_ok(), "{} is missing", path.display());
}

#[tokio::test]
async fn idle_child_that_exits_is_replaced() {
    let children = children(1);
    children.check().await.unwrap();
    let first = children.stats().tasks[0].0;
    let kill = format!("kill -s KILL {first}");
    Command::new("sh").args(["-c", &kill]).status().unwrap();
    until(&children, "it is replaced", |stats| {
        stats.tasks.iter().any(|(pid, _)| *pid != first)
    })
    .await;
    children.close().await;
    assert!(children.stats().tasks.is_empty());
}

#[tokio::test]
async fn pool_is_resized_while_tasks_run() {
    let children = children(1);
    let folder = folder();
    let one = run(&children, &job(&HOLD, &folder));
    until(&children, "one runs", |stats| stats.tasks.len() == 1).await;
    let second = job(&HOLD, &folder);
    let other = run(&children, &second);
    children.resize(2);
    until(&children, "two run", |stats| {
        stats.tasks.iter().filter(|(_, tasks)| *tasks == 1).count() == 2
    })
    .await;
    let pids: Vec<_> = children.stats().tasks.iter().map(|(pid, _)| *pid).collect();
    assert!(pids.contains(&second.control.pid()));
    children.resize(1);
    assert_eq!(children.stats().tasks.len(), 2, "running tasks finish");

    std::fs::write(folder.join("go"), "").unwrap();
    one.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    until(&children, "one is left", |stats| stats.tasks.len() == 1).await;
    assert_eq!(children.stats().size, 1);
    children.close().await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn task_is_terminated_with_the_chosen_signal() {
    let children = children(1);
    let folder = folder();
    let job = job(&STUBBORN, &folder);
    let running = run(&children, &job);
    until_exists(folder.join("started")).await;
    let pid = job.control.pid();
    job.control.set_signal(15);
    running.abort();
    until_exists(folder.join("received")).await;
    // The task ignores the signal.
    until(&children, "it is killed", |stats| {
        stats.tasks.iter().all(|(other, _)| *other != pid)
    })
    .await;
    children.close().await;
    std::fs::remove_dir_all(folder).unwrap();
}
