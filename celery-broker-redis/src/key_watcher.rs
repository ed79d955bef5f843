//! Waiting for changed keys on one connection, however many keys there are.

use std::time::Duration;

use celery_runtime::ServiceError;
use tokio::time::{Instant, sleep_until};

use crate::link::{Attempt, Command, Dedicated, Link, Reply, Script};

/// Even where the server tells about changes it is asked this often: one lost
/// notice must not stop a worker, and a server that went silent is noticed.
const SAFETY_POLL: Duration = Duration::from_secs(1);

/// How often a server that cannot tell is asked: soon after something came,
/// ever more rarely while nothing does.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// A connection that is told when keys change that it has read.
///
/// Blocking commands take one key for each list and priority and one connection
/// for each of them that must be atomic; client-side caching is meant for
/// something else and does this with one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    connection: Dedicated,
    tells: bool,
    pause: Duration,
}

impl Watch {
    pub(crate) async fn connect(link: &Link, attempt: Attempt<'_>) -> Result<Self, ServiceError> {
        let mut connection = link.dedicated(attempt).await?;
        let mut tells = connection.can_push();
        if tells {
            // NOLOOP: what we take ourselves is no news.
            let tracking = Command::new("CLIENT").args(["TRACKING", "ON", "NOLOOP"]);
            match connection.call(attempt, tracking).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                // Some proxies and some access rules do not allow it.
                Err(error) => {
                    tracing::info!(%error, "the server cannot tell about changes; polling");
                    tells = false;
                }
            }
        }
        Ok(Self {
            connection,
            tells,
            pause: POLL.0,
        })
    }

    /// Runs a script that reads the keys to be watched.
    pub(crate) async fn script(
        &mut self,
        attempt: Attempt<'_>,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<Reply, ServiceError> {
        self.connection
            .script(attempt, script, keys, arguments)
            .await
    }

    /// Something was found: the next look shall come soon.
    pub(crate) fn found(&mut self) {
        self.pause = POLL.0;
    }

    /// Waits until it is worth looking again, after a look that found nothing.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.tells {
            tokio::select! {
                () = self.connection.pushed() => {}
                () = tokio::time::sleep(SAFETY_POLL) => {}
            }
            return;
        }
        let until = Instant::now() + self.pause;
        sleep_until(until).await;
        self.pause = (self.pause * 2).min(POLL.1);
    }
}
