//! A RabbitMQ server of its own, which a test may break: [`OwnRabbit`].

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use celery::{Client, Config, Queue, Worker};
use test_servers::RabbitServer;

use crate::support::{RunLog, RunningWorker, TIMEOUT, blocking, eventually};

/// How long work may take to resume on a machine that is busy with other tests.
/// The goal on an idle machine is two seconds; the tests print the times.
pub(super) const RESUME_LIMIT: Duration = Duration::from_secs(10);

/// A server of its own, and the configuration of its programs.
pub(super) struct OwnRabbit {
    pub(super) server: Arc<RabbitServer>,
    config: Config,
}

impl OwnRabbit {
    pub(super) async fn start() -> Self {
        let server = Arc::new(blocking(RabbitServer::start).await);
        let config = Config::new().broker_url(server.url());
        Self { server, config }
    }

    /// Returns the same server with one more setting for clients and workers.
    pub(super) fn set(self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        let config = self.config.set(name, value.into()).unwrap();
        Self { config, ..self }
    }

    /// Returns the same server with another URL for clients and workers.
    pub(super) fn broker_url(self, url: String) -> Self {
        Self {
            config: self.config.broker_url(url),
            ..self
        }
    }

    pub(super) fn client(&self) -> Client {
        celery::connect(self.config.clone()).unwrap().client()
    }

    /// Starts a worker with four slots.
    pub(super) async fn serve(&self, runs: &RunLog) -> RunningWorker {
        self.serve_with(runs, |worker| worker.concurrency(4)).await
    }

    /// Starts a worker with options.
    pub(super) async fn serve_with(
        &self,
        runs: &RunLog,
        configure: impl FnOnce(Worker) -> Worker,
    ) -> RunningWorker {
        let app = celery::connect(self.config.clone()).unwrap();
        RunningWorker::start(configure(app.worker(runs.tasks()))).await
    }

    /// Runs a blocking operation on the server.
    pub(super) async fn on_server<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&RabbitServer) -> T + Send + 'static,
    ) -> T {
        let server = Arc::clone(&self.server);
        blocking(move || operation(&server)).await
    }

    /// Runs a command of `rabbitmqctl`.
    pub(super) async fn control(&self, words: &'static [&'static str]) -> String {
        self.on_server(move |server| server.control(words)).await
    }

    /// Raises the server's memory alarm, and waits until it is raised.
    pub(super) async fn raise_memory_alarm(&self) {
        self.set_memory_watermark("0.00001", true).await;
    }

    /// Clears the server's memory alarm, and waits until it is cleared.
    pub(super) async fn clear_memory_alarm(&self) {
        self.set_memory_watermark("0.6", false).await;
    }

    async fn set_memory_watermark(&self, limit: &'static str, is_raised: bool) {
        let set =
            move |server: &RabbitServer| server.control(&["set_vm_memory_high_watermark", limit]);
        self.on_server(set).await;
        // The server checks its memory in intervals.
        eventually("the memory alarm changes", async || {
            let alarms = self.control(&["eval", "rabbit_alarm:get_alarms()."]).await;
            (alarms.contains("memory") == is_raised).then_some(())
        })
        .await;
    }

    /// Returns the ready and unacknowledged messages of a queue; 0 if it does not
    /// exist.
    pub(super) async fn counts(&self, queue: &'static str) -> (usize, usize) {
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

    /// Waits until the queue `celery` has no messages.
    pub(super) async fn assert_drained(&self) {
        eventually("the queue is empty", async || {
            (self.counts("celery").await == (0, 0)).then_some(())
        })
        .await;
    }

    /// Returns the ready messages of a queue, by a passive declare.
    pub(super) async fn depth(&self, queue: &str) -> u64 {
        let app = celery::connect(self.config.clone()).unwrap();
        let depth = app.broker().depth(&Queue::new(queue)).await.unwrap();
        app.close().await;
        depth
    }
}

/// Waits until the server on this port starts an AMQP handshake, and returns when
/// it did.
pub(super) async fn wait_for_handshake(port: u16) -> Instant {
    blocking(move || {
        let greet = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"AMQP\x00\x00\x09\x01")?;
            stream.read_exact(&mut [0])
        };
        let started = Instant::now();
        while greet().is_err() {
            assert!(
                started.elapsed() < TIMEOUT,
                "the server does not accept connections"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    })
    .await
}

/// Waits until a number has run once.
pub(super) async fn assert_ran_once(runs: &RunLog, number: i64) {
    eventually("the task has run", async || {
        (runs.times(number) == 1).then_some(())
    })
    .await;
}
