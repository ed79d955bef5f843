//! An app in memory whose time is virtual, and a worker on it.

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

/// A Friday in 2026.
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

    /// Puts a message as it is into the queue of tasks; its headers are JSON.
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

    /// Takes a message that waits in a queue.
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

    /// Seconds that have passed since the start.
    pub(crate) fn elapsed(&self) -> f64 {
        self.clock
            .now()
            .duration_since(start_time())
            .unwrap()
            .as_secs_f64()
    }
}

/// A worker that runs until it is told to stop.
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

    pub(crate) fn ask_to_stop(&mut self) {
        let (cold, lost) = oneshot::channel();
        self.cold = Some(cold);
        let _ = self.stop.take().unwrap().send(ForceShutdown(Some(lost)));
    }

    pub(crate) fn lose_patience(&mut self) {
        let _ = self.cold.take().unwrap().send(());
    }

    pub(crate) async fn ended(self) -> Result<(), WorkerError> {
        self.worker.await.unwrap()
    }

    pub(crate) async fn stop(mut self) -> Result<(), WorkerError> {
        self.ask_to_stop();
        self.ended().await
    }

    /// As if the process were killed.
    pub(crate) async fn kill(self) {
        self.worker.abort();
        let _ = self.worker.await;
    }
}

struct ForceShutdown(Option<oneshot::Receiver<()>>);

impl celery_runtime::ForceShutdown for ForceShutdown {
    fn requested(&mut self) -> celery_runtime::BoxFuture<'_, ()> {
        Box::pin(async {
            let asked = match self.0.take() {
                Some(lost) => lost.await.is_ok(),
                None => false,
            };
            if !asked {
                std::future::pending().await
            }
        })
    }
}

/// Fails the test instead of hanging it. With the clock paused this costs
/// nothing, and it only passes when nothing else can happen any more.
pub(crate) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future)
        .await
        .expect("it takes longer than it should")
}
