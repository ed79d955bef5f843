//! A connection with a single owner, outside the pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celery_runtime::ServiceError;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind};
use tokio::sync::Notify;

use super::error::is_rejection;
use super::lost::ConnectionId;
use super::{Command, Operation, RedisClient, RedisReply, Script, single};

impl RedisClient {
    /// Opens a connection for a single owner.
    ///
    /// # Errors
    ///
    /// If the connection cannot be opened.
    pub async fn dedicated(
        &self,
        operation: Operation<'_>,
    ) -> Result<DedicatedConnection, ServiceError> {
        if self.is_closed() {
            return Err(self.closed_error(operation));
        }
        let pushed = Arc::new(Notify::new());
        let notify = Arc::clone(&pushed);
        let opened = self.inner.connector.connect(move |info: PushInfo| {
            if matches!(info.kind, PushKind::Invalidate | PushKind::Disconnection) {
                notify.notify_one();
            }
        });
        let opened = opened
            .await
            .map_err(|error| operation.unconnected(self, &error))?;
        let mut connection = opened.connection;
        if let Err(error) = self.inner.lost.kill(&mut connection).await {
            self.inner.lost.add(opened.id.as_ref());
            return Err(operation.unconnected(self, &error));
        }
        Ok(DedicatedConnection {
            connection,
            id: opened.id,
            response_timeout: self.options().limits.response,
            client: self.clone(),
            pushed: opened.pushes.then_some(pushed),
        })
    }
}

/// A connection with a single owner.
pub struct DedicatedConnection {
    connection: MultiplexedConnection,
    id: Option<ConnectionId>,
    response_timeout: Duration,
    client: RedisClient,
    pushed: Option<Arc<Notify>>,
}

impl DedicatedConnection {
    /// Returns whether the server can notify of changed keys.
    pub fn can_push(&self) -> bool {
        self.pushed.is_some()
    }

    /// Waits until the server has notified of a changed key, or the connection
    /// has ended, since the last call. Never returns if the server [cannot
    /// push](Self::can_push).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn pushed(&self) {
        match &self.pushed {
            Some(pushed) => pushed.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Sets the time within which the server has to answer; by default that of
    /// the options.
    pub fn set_response_timeout(&mut self, limit: Duration) {
        self.response_timeout = limit;
        self.connection.set_response_timeout(limit);
    }

    /// Runs one command.
    ///
    /// # Errors
    ///
    /// If the connection is broken, or the server rejects the command or does
    /// not answer.
    pub async fn call(
        &mut self,
        operation: Operation<'_>,
        command: Command,
    ) -> Result<RedisReply, ServiceError> {
        let value = self.send(operation, command).await?;
        RedisReply::new(value).map_err(|error| operation.failed(&self.client, &error))
    }

    /// Runs a script, by its hash if the server knows it.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call).
    pub async fn script(
        &mut self,
        operation: Operation<'_>,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        let mut value = self
            .send(operation, script.by_hash(keys, arguments))
            .await?;
        if let redis::Value::ServerError(error) = &value
            && error.code() == "NOSCRIPT"
        {
            value = self
                .send(operation, script.by_text(keys, arguments))
                .await?;
        }
        RedisReply::new(value).map_err(|error| operation.failed(&self.client, &error))
    }

    async fn send(
        &mut self,
        operation: Operation<'_>,
        command: Command,
    ) -> Result<redis::Value, ServiceError> {
        let pipeline = single(command);
        let mut request = DedicatedRequest {
            client: &self.client,
            id: self.id.as_ref(),
            is_answered: false,
        };
        let answer = self.connection.send_packed_commands(&pipeline, 0, 1).await;
        request.is_answered = match &answer {
            Ok(_) => true,
            Err(error) => is_rejection(error),
        };
        match answer {
            Ok(mut values) => Ok(values.pop().unwrap_or(redis::Value::Nil)),
            Err(error) => Err(operation.failed_within(&self.client, &error, self.response_timeout)),
        }
    }
}

/// A request on a dedicated connection. Without an answer, also where its future is
/// dropped, the connection is killed before the next request on another one.
struct DedicatedRequest<'a> {
    client: &'a RedisClient,
    id: Option<&'a ConnectionId>,
    is_answered: bool,
}

impl Drop for DedicatedRequest<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.client.inner.lost.add(self.id);
        }
    }
}

impl fmt::Debug for DedicatedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedicatedConnection")
            .field("client", &self.client)
            .field("can_push", &self.can_push())
            .finish_non_exhaustive()
    }
}
