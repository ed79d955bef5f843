//! Waiting for changed keys on one connection, however many keys there are.

use std::time::Duration;

use celery_runtime::ServiceError;
use tokio::time::{Instant, sleep_until};

use crate::link::{Attempt, Command, DedicatedConnection, Link, RedisReply, Script};

/// Even where the server tracking about changes it is asked this often: one lost
/// notice must not stop a worker, and a server that went silent is noticed.
const SAFETY_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often a server that cannot tell is asked: soon after something came,
/// ever more rarely while nothing does.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(5);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A connection that is told when keys change that it has read.
///
/// Blocking commands take one key for each list and priority and one connection
/// for each of them that must be atomic; client-side caching is meant for
/// something else and does this with one connection.
#[derive(Debug)]
pub(crate) struct KeyWatcher {
    connection: DedicatedConnection,
    tracking: bool,
    poll_interval: Duration,
}

impl KeyWatcher {
    pub(crate) async fn connect(link: &Link, attempt: Attempt<'_>) -> Result<Self, ServiceError> {
        let mut connection = link.dedicated(attempt).await?;
        let mut tracking = connection.can_push();
        if tracking {
            // NOLOOP: what we take ourselves is no news.
            let command = Command::new("CLIENT").args(["TRACKING", "ON", "NOLOOP"]);
            match connection.call(attempt, command).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                // Some proxies and some access rules do not allow it.
                Err(error) => {
                    tracing::info!(%error, "the server cannot tell about changes; polling");
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

    /// Runs a script that reads the keys to be watched.
    pub(crate) async fn script(
        &mut self,
        attempt: Attempt<'_>,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        self.connection
            .script(attempt, script, keys, arguments)
            .await
    }

    /// Something was found: the next look shall come soon.
    pub(crate) fn reset_poll_interval(&mut self) {
        self.poll_interval = MIN_POLL_INTERVAL;
    }

    /// Waits until it is worth looking again, after a look that found nothing.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.tracking {
            tokio::select! {
                () = self.connection.pushed() => {}
                () = tokio::time::sleep(SAFETY_POLL_INTERVAL) => {}
            }
            return;
        }
        let until = Instant::now() + self.poll_interval;
        sleep_until(until).await;
        self.poll_interval = (self.poll_interval * 2).min(MAX_POLL_INTERVAL);
    }
}
