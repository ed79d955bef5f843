//! Workers inside the test process: [`RunningWorker`].

use celery_runtime::{BoxFuture, ConnectionEvent, ForceShutdown, Worker, WorkerError};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::within;

/// A worker on a task of its own, with a way to stop it.
#[derive(Debug)]
pub struct RunningWorker {
    shutdown: Option<oneshot::Sender<ForceSignal>>,
    force: Option<oneshot::Sender<()>>,
    connections: watch::Receiver<ConnectionCounts>,
    worker: JoinHandle<Result<(), WorkerError>>,
}

/// How often a worker has connected to its broker and has lost the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionCounts {
    /// Connections made.
    pub connected: usize,
    /// Connections lost.
    pub lost: usize,
}

impl RunningWorker {
    /// Starts a worker and waits until it is connected. Replaces the worker's
    /// hook for connection events.
    ///
    /// # Panics
    ///
    /// Panics when the worker does not connect.
    pub async fn start(worker: Worker) -> Self {
        let (count, connections) = watch::channel(ConnectionCounts::default());
        let worker = worker.on_connection_event(move |event| {
            count.send_modify(|counts| match event {
                ConnectionEvent::Lost(error) => {
                    println!("the worker lost its connection: {error}");
                    counts.lost += 1;
                }
                _ => counts.connected += 1,
            });
        });
        let mut running = Self::spawn_with(worker, connections);
        let connected = running.connections.wait_for(|counts| counts.connected > 0);
        within("the worker connects", connected)
            .await
            .expect("the worker runs");
        running
    }

    /// Starts a worker without waiting for its connection, and without counting
    /// connections.
    #[must_use]
    pub fn spawn(worker: Worker) -> Self {
        let (_, connections) = watch::channel(ConnectionCounts::default());
        Self::spawn_with(worker, connections)
    }

    fn spawn_with(worker: Worker, connections: watch::Receiver<ConnectionCounts>) -> Self {
        let (shutdown, requested) = oneshot::channel();
        let worker = worker.run_until(async { requested.await.unwrap_or(ForceSignal(None)) });
        Self {
            shutdown: Some(shutdown),
            force: None,
            connections,
            worker: tokio::spawn(worker),
        }
    }

    /// Returns how often the worker has connected and lost its connection.
    #[must_use]
    pub fn connection_counts(&self) -> ConnectionCounts {
        *self.connections.borrow()
    }

    /// Waits until the worker has lost its connection `times` times.
    ///
    /// # Panics
    ///
    /// Panics when the worker ends, or does not lose the connection in time.
    pub async fn wait_for_losses(&mut self, times: usize) {
        let lost = self.connections.wait_for(|counts| counts.lost >= times);
        within("the worker detects the lost connection", lost)
            .await
            .expect("the worker runs");
    }

    /// Requests a warm shutdown without waiting for it.
    pub fn request_shutdown(&mut self) {
        let (force, forced) = oneshot::channel();
        self.force = Some(force);
        if let Some(shutdown) = self.shutdown.take() {
            // The worker may have failed already; `ended` returns its error.
            let _ = shutdown.send(ForceSignal(Some(forced)));
        }
    }

    /// Turns a requested shutdown into a cold one.
    pub fn force_shutdown(&mut self) {
        if let Some(force) = self.force.take() {
            let _ = force.send(());
        }
    }

    /// Waits for the worker's end, however long it takes, and returns its result.
    ///
    /// # Errors
    ///
    /// The worker's error.
    ///
    /// # Panics
    ///
    /// Panics when the worker has panicked.
    pub async fn ended(self) -> Result<(), WorkerError> {
        // The worker sees a dropped sender as a request for a warm shutdown.
        let Self {
            worker,
            shutdown: _shutdown,
            force: _force,
            ..
        } = self;
        worker.await.unwrap()
    }

    /// Shuts the worker down warmly and waits for its end.
    ///
    /// # Panics
    ///
    /// Panics when the worker fails, or does not end in time.
    pub async fn stop(mut self) {
        self.request_shutdown();
        within("the worker stops", self.ended()).await.unwrap();
    }

    /// Drops the worker at once, as if its process were killed.
    pub async fn kill(self) {
        self.worker.abort();
        let _ = self.worker.await;
    }
}

#[derive(Debug)]
struct ForceSignal(Option<oneshot::Receiver<()>>);

impl ForceShutdown for ForceSignal {
    fn requested(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let forced = match self.0.take() {
                Some(forced) => forced.await.is_ok(),
                None => false,
            };
            if !forced {
                std::future::pending().await
            }
        })
    }
}
