//! What the for_each_broker have in common: servers, workers on them, Python beside.

mod broker_matrix;
mod broker_state;
mod load;
mod process;
mod redis_state;
mod tasks;
mod vhost;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery::{App, Client, Config, ConnectionEvent, Tasks, Worker, WorkerError};
use serde_json::{Map, Value as Json, json};
use test_servers::{Python, PythonWorker, PythonWorkerBuilder, RabbitServer, RedisServer};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) use broker_matrix::{broker_test, for_each_broker};
pub(crate) use broker_state::MessageExt;
pub(crate) use load::{assert_sums, count_done, send_adds, send_sleeps};
pub(crate) use process::{WorkerProcess, example, signal};
pub(crate) use redis_state::RedisExt;
pub(crate) use tasks::{HOP, LANGUAGE, NOW, RECORD, REJECT, RETRY_TIMES, RunLog, test_tasks};
pub(crate) use vhost::Vhost;

/// How long anything may take that has to happen.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Workers of both languages look after each other within a second or two,
/// instead of an hour.
pub(crate) fn fast_restore() -> Json {
    json!({
        "visibility_timeout": 2,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
        // Of a worker that is killed while it looks after others.
        "unacked_mutex_expire": 1,
    })
}

/// A broker and a result backend, and how to use them.
pub(crate) struct Setup {
    /// Started when it is first used: broker and result backend, or one of them.
    pub(crate) redis: Arc<LazyRedis>,
    /// The broker, where Redis is not.
    vhost: Option<Arc<Vhost>>,
    config: Config,
    /// The settings that Python has, too.
    common: Map<String, Json>,
}

type LazyRedis = LazyLock<RedisServer, Box<dyn FnOnce() -> RedisServer + Send>>;

impl Setup {
    /// Broker and result backend on Redis.
    pub(crate) fn redis() -> Self {
        Self::new()
    }

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
            redis: Arc::new(LazyLock::new(Box::new(|| redis))),
            vhost: None,
            config,
            common: Map::new(),
        }
    }

    /// The broker is RabbitMQ, with nothing in it; results are on Redis.
    pub(crate) fn rabbitmq() -> Self {
        let setup = Self::rpc();
        let results = setup.redis.url();
        setup.set("result_backend", results)
    }

    /// The broker is RabbitMQ, with nothing in it; results come over it, too.
    pub(crate) fn rpc() -> Self {
        let vhost = Vhost::fresh();
        let config = Config::new()
            .broker_url(vhost.url())
            .result_backend("rpc://");
        Self {
            redis: Arc::new(LazyLock::new(Box::new(RedisServer::start))),
            vhost: Some(Arc::new(vhost)),
            config,
            common: Map::new(),
        }
    }

    /// The same as [`rabbitmq`](Self::rabbitmq) with quorum queues.
    pub(crate) fn quorum() -> Self {
        Self::rabbitmq()
            .with("task_default_queue_type", "quorum")
            .with("task_create_missing_queue_type", "quorum")
    }

    /// Quorum queues on topic exchanges: then Python lets RabbitMQ wait until
    /// a task is due.
    pub(crate) fn native() -> Self {
        Self::quorum()
            .with("task_default_exchange_type", "topic")
            .with("task_create_missing_queue_exchange_type", "topic")
    }

    /// The same servers with one more of Celery's settings for our side.
    pub(crate) fn set(&self, name: &str, value: impl Into<Json>) -> Self {
        Self {
            redis: Arc::clone(&self.redis),
            vhost: self.vhost.clone(),
            config: self.config.clone().set(name, value.into()).unwrap(),
            common: self.common.clone(),
        }
    }

    /// The same servers with one more of Celery's settings for both languages.
    pub(crate) fn with(&self, name: &str, value: impl Into<Json>) -> Self {
        let value = value.into();
        let mut setup = self.set(name, value.clone());
        setup.common.insert(name.to_owned(), value);
        setup
    }

    /// The type of the queues that are made.
    pub(crate) fn queue_type(&self) -> &str {
        let set = self.common.get("task_default_queue_type");
        set.and_then(Json::as_str).unwrap_or("classic")
    }

    /// What is in the RabbitMQ.
    pub(crate) fn vhost(&self) -> &Vhost {
        self.vhost.as_deref().expect("the broker is RabbitMQ")
    }

    pub(crate) fn app(&self) -> App {
        celery::connect(self.config.clone()).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.app().client()
    }

    /// A worker of the examples' tasks.
    pub(crate) async fn worker(&self) -> RunningWorker {
        self.serve(crate::handlers::all()).await
    }

    pub(crate) async fn serve(&self, tasks: Tasks) -> RunningWorker {
        RunningWorker::start(self.app().worker(tasks).concurrency(4)).await
    }

    pub(crate) fn broker_url(&self) -> &str {
        self.config.require_broker_url().unwrap()
    }

    pub(crate) fn result_backend_url(&self) -> &str {
        self.config.result_backend_url().unwrap_or_default()
    }

    /// Where a program may write its log.
    pub(crate) fn new_log(&self) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = match self.vhost {
            Some(_) => RabbitServer::shared().folder(),
            None => self.redis.folder(),
        };
        folder.join(format!("worker-{number}.log"))
    }

    /// The environment in which a program finds the servers.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            own("CELERY_BROKER_URL", self.broker_url()),
            own("CELERY_RESULT_BACKEND", self.result_backend_url()),
            own("TEST_SETTINGS", &json!(self.common).to_string()),
            own("PYTHONPATH", &python_path()),
        ]
    }

    /// Runs a Python program that may use all of `python/common.py`; answers
    /// what it printed.
    pub(crate) async fn python(&self, code: impl Into<String>) -> String {
        self.python_program(format!("from common import *\n{}", code.into()))
            .await
    }

    /// The same with all of `python/aio.py`.
    pub(crate) async fn aio(&self, code: &str) {
        self.python_program(format!("from aio import *\n{code}"))
            .await;
    }

    async fn python_program(&self, code: String) -> String {
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

    /// A Python worker of the examples' tasks and of `python/worker_app.py`.
    pub(crate) fn python_worker(&self) -> PythonWorkerBuilder {
        // With RabbitMQ, the solo pool sleeps over tasks for later.
        let pool = if self.is_on_redis() {
            "solo"
        } else {
            "threads"
        };
        let worker = Python::new()
            .worker(self.broker_url(), self.result_backend_url())
            .pool(pool)
            .app(python_folder(), "worker_app")
            .environment("CELERY_ACCEPT_CONTENT", "json,msgpack,yaml");
        let environment = self.environment().into_iter();
        environment.fold(worker, |worker, (name, value)| {
            worker.environment(name, value)
        })
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
    test_servers::paths::workspace().join("celery/tests/it/python")
}

fn python_path() -> String {
    let folders = [python_folder(), test_servers::paths::python_app()];
    let path = std::env::join_paths(folders).unwrap();
    path.into_string().unwrap()
}

/// A worker inside this process, connected.
pub(crate) struct RunningWorker {
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
    pub(crate) async fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (count, mut links) = watch::channel(Links::default());
        let worker = worker
            .on_connection_event(move |event| {
                count.send_modify(|links| match event {
                    ConnectionEvent::Lost(_) => links.lost += 1,
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
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {TIMEOUT:?}: {what}"),
    }
}

/// Looks again and again, for as long as [`TIMEOUT`] lasts.
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
