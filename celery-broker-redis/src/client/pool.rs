//! The connection pool for commands. A connection serves one call at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::connect::Connector;
use super::lost::ConnectionId;
use super::{Operation, RedisClient};
use crate::config::Limits;

/// A pool of this crate, or one that the application provides.
pub(super) enum Pool {
    Owned(managed::Pool<ConnectionManager>),
    External(deadpool_redis::Pool),
}

impl Pool {
    pub(super) fn new(connector: Connector, limits: &Limits) -> Self {
        let manager = ConnectionManager { connector };
        let pool = managed::Pool::builder(manager)
            .max_size(limits.connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(limits.response))
            .recycle_timeout(Some(limits.response))
            .build()
            .expect("a pool with timeouts has a runtime");
        Self::Owned(pool)
    }

    pub(super) async fn take(
        &self,
        client: &RedisClient,
        operation: Operation<'_>,
    ) -> Result<PooledConnection, ServiceError> {
        let taken = match self {
            Self::Owned(pool) => pool.get().await.map(PooledConnection::Owned),
            Self::External(pool) => pool.get().await.map(PooledConnection::External),
        };
        taken.map_err(|error| match error {
            PoolError::Backend(error) => operation.unconnected(client, &error),
            PoolError::Timeout(_) => operation
                .error(
                    client,
                    ServiceErrorKind::TimedOut,
                    "all connections of the pool are in use; max_connections sets how many there \
                     are",
                )
                .not_sent(),
            PoolError::Closed => client.closed_error(operation),
            other => operation.error(client, ServiceErrorKind::Unreachable, other.to_string()),
        })
    }

    pub(super) fn close(&self) {
        match self {
            Self::Owned(pool) => pool.close(),
            // The application may use it elsewhere.
            Self::External(_) => {}
        }
    }
}

/// A connection that returns to its pool when it is dropped.
pub(super) enum PooledConnection {
    Owned(managed::Object<ConnectionManager>),
    External(deadpool_redis::Connection),
}

impl PooledConnection {
    pub(super) fn shared(&self) -> MultiplexedConnection {
        match self {
            Self::Owned(object) => object.connection.clone(),
            Self::External(connection) => MultiplexedConnection::clone(connection),
        }
    }

    /// Returns what identifies the connection for `CLIENT KILL`; `None` in a pool of the
    /// application.
    pub(super) fn id(&self) -> Option<&ConnectionId> {
        match self {
            Self::Owned(object) => object.id.as_ref(),
            Self::External(_) => None,
        }
    }

    /// Keeps the connection from being reused.
    pub(super) fn discard(&mut self) {
        if let Self::Owned(object) = self {
            object.broken.store(true, Ordering::Release);
        }
    }
}

/// Opens connections, with failover.
#[derive(Debug)]
pub(super) struct ConnectionManager {
    connector: Connector,
}

/// The idle time up to which a connection is reused without a ping. In a longer
/// pause the server may have restarted unnoticed.
const MAX_UNCHECKED_IDLE: Duration = Duration::from_millis(100);

/// A connection with a flag that is set when it breaks.
pub(super) struct ManagedConnection {
    connection: MultiplexedConnection,
    broken: Arc<AtomicBool>,
    id: Option<ConnectionId>,
    /// Whether the library reports the end of the connection immediately, which
    /// requires RESP3. Otherwise a ping has to check it.
    pushes: bool,
}

impl managed::Manager for ConnectionManager {
    type Type = ManagedConnection;
    type Error = RedisError;

    async fn create(&self) -> Result<ManagedConnection, RedisError> {
        let broken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&broken);
        let opened = self
            .connector
            .connect(move |push| {
                if push.kind == redis::PushKind::Disconnection {
                    flag.store(true, Ordering::Release);
                }
            })
            .await?;
        Ok(ManagedConnection {
            connection: opened.connection,
            broken,
            id: opened.id,
            pushes: opened.pushes,
        })
    }

    /// Pings a connection that was idle for a while or cannot report its end. A
    /// ping before every command would double the round trips.
    async fn recycle(
        &self,
        pooled: &mut ManagedConnection,
        metrics: &Metrics,
    ) -> RecycleResult<RedisError> {
        if pooled.broken.load(Ordering::Acquire) {
            return Err(RecycleError::message("the connection broke"));
        }
        if pooled.pushes && metrics.last_used() < MAX_UNCHECKED_IDLE {
            return Ok(());
        }
        redis::cmd("PING")
            .exec_async(&mut pooled.connection)
            .await?;
        Ok(())
    }
}
