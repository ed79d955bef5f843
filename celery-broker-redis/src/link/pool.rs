//! Connections for commands, each used by one caller at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::connect::Connector;
use super::{Attempt, Link};
use crate::config::Limits;

/// Our pool, or one that the user brought.
pub(super) enum Pool {
    Ours(managed::Pool<Manager>),
    Theirs(deadpool_redis::Pool),
}

impl Pool {
    pub(super) fn new(connector: Connector, limits: &Limits) -> Self {
        let manager = Manager { connector };
        let pool = managed::Pool::builder(manager)
            .max_size(limits.connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(limits.response))
            .recycle_timeout(Some(limits.response))
            .build()
            .expect("a pool with timeouts has a runtime");
        Self::Ours(pool)
    }

    pub(super) async fn take(
        &self,
        link: &Link,
        attempt: Attempt<'_>,
    ) -> Result<Taken, ServiceError> {
        let taken = match self {
            Self::Ours(pool) => pool.get().await.map(Taken::Ours),
            Self::Theirs(pool) => pool.get().await.map(Taken::Theirs),
        };
        taken.map_err(|error| match error {
            PoolError::Backend(error) => attempt.unconnected(link, &error),
            PoolError::Timeout(_) => attempt.error(
                link,
                ServiceErrorKind::TimedOut,
                "all connections of the pool are in use; max_connections sets how many there are",
            ),
            PoolError::Closed => link.closed_error(attempt),
            other => attempt.error(link, ServiceErrorKind::Unreachable, other.to_string()),
        })
    }

    pub(super) fn close(&self) {
        match self {
            Self::Ours(pool) => pool.close(),
            // Others may use it.
            Self::Theirs(_) => {}
        }
    }
}

/// A connection that goes back to its pool when dropped.
pub(super) enum Taken {
    Ours(managed::Object<Manager>),
    Theirs(deadpool_redis::Connection),
}

impl Taken {
    pub(super) fn shared(&self) -> MultiplexedConnection {
        match self {
            Self::Ours(object) => object.connection.clone(),
            Self::Theirs(connection) => MultiplexedConnection::clone(connection),
        }
    }

    /// Keeps the pool from handing it out again.
    pub(super) fn discard(&mut self) {
        if let Self::Ours(object) = self {
            object.broken.store(true, Ordering::Release);
        }
    }
}

/// Makes connections, with failover.
#[derive(Debug)]
pub(super) struct Manager {
    connector: Connector,
}

/// A connection that was in use this shortly ago is taken for alive. In a longer
/// pause the server may have gone and come back without our having looked.
const FRESH: Duration = Duration::from_millis(100);

/// A connection that tells when it broke.
pub(super) struct Pooled {
    connection: MultiplexedConnection,
    broken: Arc<AtomicBool>,
    /// Whether the library tells us at once when the connection ends: only in
    /// the newer protocol. Otherwise we have to ask.
    tells: bool,
}

impl managed::Manager for Manager {
    type Type = Pooled;
    type Error = RedisError;

    async fn create(&self) -> Result<Pooled, RedisError> {
        let broken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&broken);
        let made = self
            .connector
            .connect(move |push| {
                if push.kind == redis::PushKind::Disconnection {
                    flag.store(true, Ordering::Release);
                }
            })
            .await?;
        Ok(Pooled {
            connection: made.connection,
            broken,
            tells: made.pushes,
        })
    }

    /// A ping for each command would double the round trips, so only those are
    /// asked that were idle for a while or cannot tell.
    async fn recycle(&self, pooled: &mut Pooled, metrics: &Metrics) -> RecycleResult<RedisError> {
        if pooled.broken.load(Ordering::Acquire) {
            return Err(RecycleError::message("the connection broke"));
        }
        if pooled.tells && metrics.last_used() < FRESH {
            return Ok(());
        }
        redis::cmd("PING")
            .exec_async(&mut pooled.connection)
            .await?;
        Ok(())
    }
}
