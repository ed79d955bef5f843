//! Waiting for changes of any number of keys on one connection.

use std::time::Duration;

use celery_runtime::{ServiceError, env};
use tokio::time::sleep_until;

use crate::client::{Command, DedicatedConnection, Operation, RedisClient, RedisReply, Script};

/// The poll interval on a server that notifies of changes. It bounds the delay
/// after a lost notification, and detects a server that stopped answering.
const SAFETY_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The poll interval on a server without notifications: it starts at the
/// minimum after a message and doubles up to the maximum.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(5);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A connection that the server notifies when keys change that it has read
/// (client-side caching).
///
/// Blocking commands do not fit: `BRPOP` pops a message without recording it as
/// unacked, and `BLMOVE` waits for a single list per connection.
#[derive(Debug)]
pub(crate) struct KeyWatcher {
    connection: DedicatedConnection,
    tracking: bool,
    poll_interval: Duration,
}

impl KeyWatcher {
    pub(crate) async fn connect(
        client: &RedisClient,
        operation: Operation<'_>,
    ) -> Result<Self, ServiceError> {
        let mut connection = client.dedicated(operation).await?;
        let mut tracking = connection.can_push();
        if tracking {
            // NOLOOP: no notifications of this connection's own changes.
            let command = Command::new("CLIENT").args(["TRACKING", "ON", "NOLOOP"]);
            match connection.call(operation, command).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                // Some proxies and ACL rules forbid the command.
                Err(error) => {
                    tracing::info!(%error, "the server does not support CLIENT TRACKING; polling");
                    tracking = false;
                }
            }
        }
        Ok(Self {
            connection,
            tracking,
            poll_interval: MIN_POLL_INTERVAL,
        })
    }

    /// Sets the time within which the server has to answer.
    pub(crate) fn set_response_timeout(&mut self, limit: Duration) {
        self.connection.set_response_timeout(limit);
    }

    /// Runs a script that reads the keys to watch.
    pub(crate) async fn script(
        &mut self,
        operation: Operation<'_>,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        self.connection
            .script(operation, script, keys, arguments)
            .await
    }

    /// Resets the poll interval to its minimum.
    pub(crate) fn reset_poll_interval(&mut self) {
        self.poll_interval = MIN_POLL_INTERVAL;
    }

    /// Waits until a watched key has changed or the poll interval has passed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.tracking {
            tokio::select! {
                biased;
                () = self.connection.pushed() => {}
                () = tokio::time::sleep(SAFETY_POLL_INTERVAL) => {}
            }
            return;
        }
        let until = env::instant() + self.poll_interval;
        sleep_until(until).await;
        self.poll_interval = (self.poll_interval * 2).min(MAX_POLL_INTERVAL);
    }
}
