//! Connections to Redis, shared by the broker and the result backend.
//!
//! This module is public for `celery-backend-redis` alone and follows no
//! version rules. It exposes no type of the underlying library.

mod command;
mod connect;
mod dedicated;
mod error;
mod lost;
mod pool;
mod pubsub;

use std::fmt;
use std::sync::Arc;

use celery_runtime::{ServiceError, ServiceErrorKind};
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;

use crate::config::RedisOptions;
use connect::Connector;
use lost::LostConnections;
use pool::{Pool, PooledConnection};

pub use command::{COMPARE_AND_DELETE, Command, RedisReply, Script};
pub use dedicated::DedicatedConnection;
pub use error::Operation;
pub use pubsub::{PubSubCommand, PubSubControl, PubSubMessage, PubSubMessages};

/// The connections of one broker or backend to one Redis, or to the first
/// reachable of several. Clones share them.
#[derive(Clone)]
pub struct RedisClient {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    options: RedisOptions,
    connector: Connector,
    pool: Pool,
    lost: LostConnections,
    closed: watch::Sender<bool>,
}

impl RedisClient {
    /// Returns a client that connects when it is first used.
    pub fn new(options: RedisOptions) -> Self {
        let connector = Connector::new(&options);
        let pool = Pool::new(connector.clone(), &options.limits);
        Self::with_pool(pool, connector, options)
    }

    /// Returns a client that runs its commands on an existing pool.
    pub fn from_pool(pool: deadpool_redis::Pool, options: RedisOptions) -> Self {
        let connector = Connector::new(&options);
        Self::with_pool(Pool::External(pool), connector, options)
    }

    fn with_pool(pool: Pool, connector: Connector, options: RedisOptions) -> Self {
        let inner = ClientInner {
            options,
            connector,
            pool,
            lost: LostConnections::default(),
            closed: watch::Sender::new(false),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns the options.
    pub fn options(&self) -> &RedisOptions {
        &self.inner.options
    }

    /// Runs one command.
    ///
    /// # Errors
    ///
    /// If there is no connection, or the server rejects the command.
    pub async fn call(
        &self,
        operation: Operation<'_>,
        command: Command,
    ) -> Result<RedisReply, ServiceError> {
        let mut answers = self.pipeline(operation, vec![command]).await?;
        answers.pop().unwrap_or(Ok(RedisReply::Nil))
    }

    /// Runs commands in one round trip, each with its own outcome.
    ///
    /// # Errors
    ///
    /// If there is no connection, or it breaks.
    pub async fn pipeline(
        &self,
        operation: Operation<'_>,
        commands: Vec<Command>,
    ) -> Result<Vec<Result<RedisReply, ServiceError>>, ServiceError> {
        let mut pipeline = redis::Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.into_inner());
        }
        let values = self.run(operation, &pipeline).await?;
        let outcome =
            |value| RedisReply::new(value).map_err(|error| operation.failed(self, &error));
        Ok(values.into_iter().map(outcome).collect())
    }

    /// Runs commands in one round trip as a transaction.
    ///
    /// # Errors
    ///
    /// If there is no connection, it breaks, or the server rejects a command.
    pub async fn atomic(
        &self,
        operation: Operation<'_>,
        commands: Vec<Command>,
    ) -> Result<Vec<RedisReply>, ServiceError> {
        let mut pipeline = redis::Pipeline::with_capacity(commands.len());
        pipeline.atomic();
        for command in commands {
            pipeline.add_command(command.into_inner());
        }
        let values = self.run(operation, &pipeline).await?;
        let outcome =
            |value| RedisReply::new(value).map_err(|error| operation.failed(self, &error));
        values.into_iter().map(outcome).collect()
    }

    /// Runs a script, by its hash if the server knows it.
    ///
    /// # Errors
    ///
    /// If there is no connection, it breaks, or the script fails.
    pub async fn script(
        &self,
        operation: Operation<'_>,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        let by_hash = script.by_hash(keys, arguments);
        let mut values = self.run(operation, &single(by_hash)).await?;
        if let Some(redis::Value::ServerError(error)) = values.first()
            && error.code() == "NOSCRIPT"
        {
            let by_text = script.by_text(keys, arguments);
            values = self.run(operation, &single(by_text)).await?;
        }
        let value = values.pop().unwrap_or(redis::Value::Nil);
        RedisReply::new(value).map_err(|error| operation.failed(self, &error))
    }

    /// Closes the client: later calls fail, and [`closed`](Self::closed)
    /// returns, which ends the owners of dedicated connections. A pool of the
    /// application stays open.
    pub fn close(&self) {
        self.inner.closed.send_replace(true);
        self.inner.pool.close();
    }

    /// Returns when the client is closed.
    pub async fn closed(&self) {
        let mut closed = self.inner.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Returns whether the client is closed.
    pub fn is_closed(&self) -> bool {
        *self.inner.closed.borrow()
    }

    /// Returns the error of calls after [`close`](Self::close).
    pub fn closed_error(&self, operation: Operation<'_>) -> ServiceError {
        operation.error(
            self,
            ServiceErrorKind::Closed,
            "the connection was closed by this process",
        )
    }

    /// Returns whether a request without an answer cannot be carried out after a later
    /// one: the connection that it was sent on is killed first. Where the server does
    /// not permit that, such a request may still arrive.
    pub fn discards_lost_requests(&self) -> bool {
        self.inner.lost.can_kill()
    }

    /// Sends a pipeline on a pooled connection. Errors of single commands are
    /// among the values.
    async fn run(
        &self,
        operation: Operation<'_>,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<redis::Value>, ServiceError> {
        if self.is_closed() {
            return Err(self.closed_error(operation));
        }
        let connection = self.inner.pool.take(self, operation).await?;
        let mut shared: MultiplexedConnection = connection.shared();
        shared.set_response_timeout(self.options().limits.response);
        let mut request = PooledRequest {
            client: self,
            connection,
            is_answered: false,
        };
        let killed = self.inner.lost.kill(&mut shared).await;
        if let Err(error) = killed {
            return Err(operation.failed(self, &error).not_sent());
        }
        let answer = if pipeline.is_transaction() {
            transaction(&mut shared, pipeline).await
        } else {
            shared
                .send_packed_commands(pipeline, 0, pipeline.len())
                .await
        };
        request.is_answered = match &answer {
            Ok(_) => true,
            Err(error) => error::is_rejection(error),
        };
        answer.map_err(|error| operation.failed(self, &error))
    }
}

/// A request on a pooled connection. Without an answer, also where its future is
/// dropped, the connection is not used again and is killed before the next request.
struct PooledRequest<'a> {
    client: &'a RedisClient,
    connection: PooledConnection,
    is_answered: bool,
}

impl Drop for PooledRequest<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.client.inner.lost.add(self.connection.id());
            self.connection.discard();
        }
    }
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisClient")
            .field(&self.options().address())
            .finish()
    }
}

fn single(command: Command) -> redis::Pipeline {
    let mut pipeline = redis::Pipeline::with_capacity(1);
    pipeline.add_command(command.into_inner());
    pipeline
}

/// Runs a transaction and returns the values of its commands.
async fn transaction(
    connection: &mut MultiplexedConnection,
    pipeline: &redis::Pipeline,
) -> redis::RedisResult<Vec<redis::Value>> {
    let skipped = pipeline.len() + 1;
    let mut answers = connection
        .send_packed_commands(pipeline, skipped, 1)
        .await?;
    match answers.pop() {
        Some(redis::Value::Array(values)) => Ok(values),
        Some(redis::Value::ServerError(error)) => Err(error.into()),
        _ => Ok(Vec::new()),
    }
}
