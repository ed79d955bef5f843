//! What the stories have in common: a server, workers on it, Python beside it.

mod load;
mod process;
mod redis;
mod story;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use celery::{App, Client, Config, LinkEvent, Tasks, Worker, WorkerError};
use serde_json::{Value as Json, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use xtask::servers::{Python, PythonWorker, PythonWorkerBuilder, RedisServer};

pub(crate) use load::{assert_sums, count_done, send_adds, send_sleeps};
pub(crate) use process::WorkerProcess;
pub(crate) use redis::Inspect;
pub(crate) use story::{AGAIN, HOP, Ledger, MARK, WHO, story};

/// How long anything may take that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Workers of both languages look after each other within a second or two,
/// instead of an hour.
pub(crate) fn impatient() -> Json {
    json!({
        "visibility_timeout": 2,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
        // Of a worker that is killed while it looks after others.
        "unacked_mutex_expire": 1,
    })
}

/// A Redis server that is broker and result backend, and how to use it.
pub(crate) struct Setup {
    pub(crate) redis: Arc<RedisServer>,
    config: Config,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::on(RedisServer::start())
    }

    /// On a server that forgets nothing that it has acknowledged.
    pub(crate) fn durable() -> Self {
        Self::on(RedisServer::builder().append_only().start())
    }

    pub(crate) fn on(redis: RedisServer) -> Self {
        let config = Config::new()
            .broker_url(redis.url())
            .result_backend(redis.url());
        Self {
            redis: Arc::new(redis),
            config,
        }
    }

    /// The same server with one more of Celery's settings for our side.
    pub(crate) fn set(&self, name: &str, value: impl Into<Json>) -> Self {
        Self {
            redis: Arc::clone(&self.redis),
            config: self.config.clone().set(name, value.into()).unwrap(),
        }
    }

    pub(crate) fn app(&self) -> App {
        celery::connect(self.config.clone()).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.app().client()
    }

    /// A worker of the examples' tasks.
    pub(crate) async fn worker(&self) -> Running {
        self.serve(crate::handlers::all()).await
    }

    pub(crate) async fn serve(&self, tasks: Tasks) -> Running {
        Running::start(self.app().worker(tasks).concurrency(4)).await
    }

    /// The environment in which a program finds the server.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let url = self.redis.url();
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            own("CELERY_BROKER_URL", &url),
            own("CELERY_RESULT_BACKEND", &url),
            own("PYTHONPATH", &python_path()),
        ]
    }

    /// Runs a Python program that may use all of `python/story.py`; answers
    /// what it printed.
    pub(crate) async fn python(&self, code: impl Into<String>) -> String {
        let code = format!("from story import *\n{}", code.into());
        let environment = self.environment();
        blocking(move || {
            let environment: Vec<_> = environment
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            Python::new().code(&code, &environment)
        })
        .await
    }

    /// A Python worker of the examples' tasks and of `python/more.py`.
    pub(crate) fn python_worker(&self) -> PythonWorkerBuilder {
        let url = self.redis.url();
        Python::new()
            .worker(&url, &url)
            .app(python_folder(), "more")
            .environment("PYTHONPATH", python_path())
            .environment("CELERY_ACCEPT_CONTENT", "json,msgpack,yaml")
    }
}

pub(crate) async fn start(worker: PythonWorkerBuilder) -> PythonWorker {
    blocking(move || worker.start()).await
}

/// Runs what blocks its thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn python_folder() -> PathBuf {
    xtask::paths::workspace().join("celery/tests/it/python")
}

fn python_path() -> String {
    let folders = [python_folder(), xtask::paths::python_app()];
    let path = std::env::join_paths(folders).unwrap();
    path.into_string().unwrap()
}

/// A worker inside this process, connected.
pub(crate) struct Running {
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

impl Running {
    pub(crate) async fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (count, mut links) = watch::channel(Links::default());
        let worker = worker
            .on_link(move |event| {
                count.send_modify(|links| match event {
                    LinkEvent::Lost(_) => links.lost += 1,
                    _ => links.made += 1,
                });
            })
            .run_until(async { stopped.await.unwrap_or(()) });
        let worker = tokio::spawn(worker);
        within("a worker connects", links.wait_for(|links| links.made > 0))
            .await
            .expect("the worker runs");
        Self {
            stop,
            links,
            worker,
        }
    }

    /// Waits until the worker has lost its connection this often.
    pub(crate) async fn lost(&mut self, times: usize) {
        let lost = self.links.wait_for(|links| links.lost >= times);
        within("the worker notices that the server is gone", lost)
            .await
            .expect("the worker runs");
    }

    /// Stops warmly.
    pub(crate) async fn stop(self) {
        // It may have ended by itself; then its error is told below.
        let _ = self.stop.send(());
        let ended = within("the worker stops", self.worker).await;
        ended.unwrap().unwrap();
    }
}

/// Bounds what has to happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Looks again and again, for as long as [`PATIENCE`] lasts.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    };
    within(what, found).await
}
