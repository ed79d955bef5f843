//! An in-memory app with virtual time, and a running worker.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use celery_protocol::{Headers, Message, Properties};
use celery_runtime::memory::{MemoryBackend, MemoryBroker};
use celery_runtime::{
    App, Broker, Client, Clock, Config, ConsumeOptions, Content, Publication, Queue, Settlement,
    Tasks, Worker, WorkerError,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Returns the time at which each test starts, in 2026.
pub(crate) fn start_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

pub(crate) struct Setup {
    pub(crate) app: App,
    pub(crate) broker: MemoryBroker,
    pub(crate) backend: MemoryBackend,
    pub(crate) clock: Clock,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::with_config(Config::new())
    }

    pub(crate) fn with_config(config: Config) -> Self {
        let clock = Clock::tokio(start_time());
        let broker = MemoryBroker::with_clock(clock.clone());
        let backend = MemoryBackend::with_clock(clock.clone());
        let app = App::new(Arc::new(broker.clone()))
            .with_backend(Arc::new(backend.clone()))
            .with_config(config)
            .with_clock(clock.clone());
        Self {
            app,
            broker,
            backend,
            clock,
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.app.client()
    }

    pub(crate) fn start(&self, tasks: Tasks) -> Running {
        Running::start(self.app.worker(tasks).concurrency(4))
    }

    pub(crate) async fn depth(&self, queue: &str) -> u64 {
        self.broker.depth(&Queue::new(queue)).await.unwrap()
    }

    /// Publishes a message to the queue `celery`; its headers are JSON.
    pub(crate) async fn push(
        &self,
        headers: &str,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) {
        let headers = Headers::from_json(Bytes::from(headers.to_owned())).unwrap();
        let mut properties = Properties::default();
        properties.content_type = content_type.into();
        let message = Message::new(headers, properties, body.into());
        let publication = Publication::to_queue(message, "celery");
        let answers = self.broker.publish(&[publication]).await;
        answers.into_iter().next().unwrap().unwrap();
    }

    /// Receives and acknowledges the next message of a queue.
    pub(crate) async fn take(&self, queue: &str) -> Message {
        let options = ConsumeOptions::new(vec![Queue::new(queue)], 1);
        let consumer = self.broker.consume(&options).await.unwrap();
        let delivery = consumer.receive(1).await.unwrap().pop().unwrap();
        let settled = consumer.settle(&[Settlement::Ack(delivery.tag)]).await;
        assert!(settled.iter().all(Result::is_ok), "{settled:?}");
        match delivery.content {
            Content::Message(message) => message,
            Content::Malformed { error, .. } => panic!("malformed: {error}"),
        }
    }

    /// Returns the seconds since the start.
    pub(crate) fn elapsed(&self) -> f64 {
        self.clock
            .now()
            .duration_since(start_time())
            .unwrap()
            .as_secs_f64()
    }
}

/// A worker that runs until it is stopped.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<ForceShutdown>>,
    cold: Option<oneshot::Sender<()>>,
    worker: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel();
        let worker = worker.run_until(async { stopped.await.unwrap_or(ForceShutdown(None)) });
        Self {
            stop: Some(stop),
            cold: None,
            worker: tokio::spawn(worker),
        }
    }

    pub(crate) fn request_stop(&mut self) {
        let (cold, requested) = oneshot::channel();
        self.cold = Some(cold);
        let _ = self
            .stop
            .take()
            .unwrap()
            .send(ForceShutdown(Some(requested)));
    }

    pub(crate) fn force_shutdown(&mut self) {
        let _ = self.cold.take().unwrap().send(());
    }

    pub(crate) async fn wait(self) -> Result<(), WorkerError> {
        self.worker.await.unwrap()
    }

    pub(crate) async fn stop(mut self) -> Result<(), WorkerError> {
        self.request_stop();
        self.wait().await
    }

    /// Aborts the worker, as a kill of its process would.
    pub(crate) async fn kill(self) {
        self.worker.abort();
        let _ = self.worker.await;
    }
}

/// Forces the shutdown when the sender sends.
struct ForceShutdown(Option<oneshot::Receiver<()>>);

impl celery_runtime::ForceShutdown for ForceShutdown {
    fn requested(&mut self) -> celery_runtime::BoxFuture<'_, ()> {
        Box::pin(async {
            let is_requested = match self.0.take() {
                Some(requested) => requested.await.is_ok(),
                None => false,
            };
            if !is_requested {
                std::future::pending().await
            }
        })
    }
}

/// Returns the value of `future`, or fails the test after this many seconds. With a
/// paused clock the time passes at once when nothing else can run.
pub(crate) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future)
        .await
        .expect("the time limit has passed")
}
