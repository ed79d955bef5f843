//! Servers with a configuration: [`Setup`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use celery::{App, Client, Config, Tasks};
use serde_json::{Map, Value as Json, json};
use test_servers::{Python, PythonWorker, PythonWorkerBuilder, RabbitServer, RedisServer};

use super::{RunningWorker, Vhost, blocking};

/// Transport options of Redis for both languages: unacknowledged deliveries are
/// restored after one or two seconds instead of an hour.
pub(crate) fn fast_restore() -> Json {
    json!({
        "visibility_timeout": 2,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
        // A worker that is killed while it restores holds this lock.
        "unacked_mutex_expire": 1,
    })
}

/// A broker and a result backend, and the configuration of their programs.
pub(crate) struct Setup {
    /// The server of the broker, of the result backend, or of both; started
    /// when it is first used.
    pub(crate) redis: Arc<LazyRedis>,
    /// The broker, unless it is Redis.
    pub(super) vhost: Option<Arc<Vhost>>,
    config: Config,
    /// The settings that the Python programs have, too.
    shared: Map<String, Json>,
}

type LazyRedis = LazyLock<RedisServer, Box<dyn FnOnce() -> RedisServer + Send>>;

impl Setup {
    /// Broker and result backend on Redis.
    pub(crate) fn redis() -> Self {
        Self::with_server(RedisServer::start())
    }

    /// Broker and result backend on a Redis that keeps every acknowledged write
    /// when it is killed.
    pub(crate) fn redis_append_only() -> Self {
        Self::with_server(RedisServer::builder().append_only().start())
    }

    fn with_server(redis: RedisServer) -> Self {
        let config = Config::new()
            .broker_url(redis.url())
            .result_backend(redis.url());
        Self {
            redis: Arc::new(LazyLock::new(Box::new(|| redis))),
            vhost: None,
            config,
            shared: Map::new(),
        }
    }

    /// The broker is an empty virtual host of RabbitMQ; results are on Redis.
    pub(crate) fn rabbitmq() -> Self {
        let setup = Self::rpc();
        let results = setup.redis.url();
        setup.set("result_backend", results)
    }

    /// The broker is an empty virtual host of RabbitMQ; results are `rpc://`.
    pub(crate) fn rpc() -> Self {
        let vhost = Vhost::new();
        let config = Config::new()
            .broker_url(vhost.url())
            .result_backend("rpc://");
        Self {
            redis: Arc::new(LazyLock::new(Box::new(RedisServer::start))),
            vhost: Some(Arc::new(vhost)),
            config,
            shared: Map::new(),
        }
    }

    /// [`rabbitmq`](Self::rabbitmq) with quorum queues.
    pub(crate) fn quorum() -> Self {
        Self::rabbitmq()
            .set_both("task_default_queue_type", "quorum")
            .set_both("task_create_missing_queue_type", "quorum")
    }

    /// Quorum queues on topic exchanges, on which Python uses native delayed
    /// delivery.
    pub(crate) fn native_delay() -> Self {
        Self::quorum()
            .set_both("task_default_exchange_type", "topic")
            .set_both("task_create_missing_queue_exchange_type", "topic")
    }

    /// Returns the same servers with one more setting for the Rust programs.
    pub(crate) fn set(&self, name: &str, value: impl Into<Json>) -> Self {
        Self {
            redis: Arc::clone(&self.redis),
            vhost: self.vhost.clone(),
            config: self.config.clone().set(name, value.into()).unwrap(),
            shared: self.shared.clone(),
        }
    }

    /// Returns the same servers with one more setting for both languages.
    pub(crate) fn set_both(&self, name: &str, value: impl Into<Json>) -> Self {
        let value = value.into();
        let mut setup = self.set(name, value.clone());
        setup.shared.insert(name.to_owned(), value);
        setup
    }

    /// Returns the configured type of new queues.
    pub(crate) fn queue_type(&self) -> &str {
        let set = self.shared.get("task_default_queue_type");
        set.and_then(Json::as_str).unwrap_or("classic")
    }

    /// Returns the virtual host of the broker.
    ///
    /// # Panics
    ///
    /// Panics when the broker is Redis.
    pub(crate) fn vhost(&self) -> &Vhost {
        self.vhost.as_deref().expect("the broker is RabbitMQ")
    }

    pub(crate) fn app(&self) -> App {
        celery::connect(self.config.clone()).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.app().client()
    }

    /// Starts a worker with the examples' tasks.
    pub(crate) async fn worker(&self) -> RunningWorker {
        self.serve(crate::handlers::all()).await
    }

    /// Starts a worker with these tasks and four slots.
    pub(crate) async fn serve(&self, tasks: Tasks) -> RunningWorker {
        RunningWorker::start(self.app().worker(tasks).concurrency(4)).await
    }

    pub(crate) fn broker_url(&self) -> &str {
        self.config.require_broker_url().unwrap()
    }

    pub(crate) fn result_backend_url(&self) -> &str {
        self.config.result_backend_url().unwrap_or_default()
    }

    /// Returns the path of a new log file, deleted with the server.
    pub(crate) fn new_log(&self) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = match self.vhost {
            Some(_) => RabbitServer::shared().folder(),
            None => self.redis.folder(),
        };
        folder.join(format!("worker-{number}.log"))
    }

    /// Returns the environment variables that configure a program.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            variable("CELERY_BROKER_URL", self.broker_url()),
            variable("CELERY_RESULT_BACKEND", self.result_backend_url()),
            variable("TEST_SETTINGS", &json!(self.shared).to_string()),
            variable("PYTHONPATH", &python_path()),
        ]
    }

    /// Runs a Python program that imports `python/common.py`, and returns its
    /// standard output.
    pub(crate) async fn python(&self, code: impl Into<String>) -> String {
        self.python_program(format!("from common import *\n{}", code.into()))
            .await
    }

    /// Runs a Python program that imports `python/aio.py`.
    pub(crate) async fn aio_python(&self, code: &str) {
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

    /// Returns a Python worker with the tasks of `python/worker_app.py`.
    pub(crate) fn python_worker(&self) -> PythonWorkerBuilder {
        // With RabbitMQ, the solo pool sleeps until a delayed task is due.
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

/// Starts a Python worker and waits until it is ready.
pub(crate) async fn start_python(worker: PythonWorkerBuilder) -> PythonWorker {
    blocking(move || worker.start()).await
}

fn python_folder() -> PathBuf {
    test_servers::paths::workspace().join("celery/tests/it/python")
}

fn python_path() -> String {
    let folders = [python_folder(), test_servers::paths::python_app()];
    let path = std::env::join_paths(folders).unwrap();
    path.into_string().unwrap()
}
