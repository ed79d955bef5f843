//! Failures that tests switch on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::boundary::{ServiceError, ServiceErrorKind};
use crate::memory::lock;

/// Makes the in-memory broker or backend fail on demand.
///
/// ```
/// use celery_runtime::memory::MemoryBroker;
///
/// let broker = MemoryBroker::new();
/// broker.faults().go_down();
/// // … everything fails as it does when a server is away …
/// broker.faults().come_back();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    planned: Mutex<VecDeque<(&'static str, ServiceErrorKind)>>,
    down: watch::Sender<bool>,
    frozen: watch::Sender<bool>,
    blocked_reason: Mutex<Option<String>>,
}

impl Faults {
    /// From now on every call fails as unreachable, and pending ones break.
    pub fn go_down(&self) {
        self.inner.down.send_replace(true);
    }

    /// Ends [`go_down`](Self::go_down).
    pub fn come_back(&self) {
        self.inner.down.send_replace(false);
    }

    /// From now on no call gets an answer, as on a connection that is open and dead.
    pub fn freeze(&self) {
        self.inner.frozen.send_replace(true);
    }

    /// The same, and the broker says why in [`Broker::blocked_reason`].
    ///
    /// [`Broker::blocked_reason`]: crate::boundary::Broker::blocked_reason
    pub fn obstruct(&self, reason: impl Into<String>) {
        *lock(&self.inner.blocked_reason) = Some(reason.into());
        self.freeze();
    }

    /// Ends [`freeze`](Self::freeze) and [`obstruct`](Self::obstruct).
    pub fn thaw(&self) {
        *lock(&self.inner.blocked_reason) = None;
        self.inner.frozen.send_replace(false);
    }

    /// The next call of `operation` (the name of the trait's method) fails
    /// with this kind of error, before it has had any effect. May be called
    /// several times; each failure counts once.
    pub fn fail_next(&self, operation: &'static str, kind: ServiceErrorKind) {
        self.planned().push_back((operation, kind));
    }

    pub(super) fn blocked_reason(&self) -> Option<String> {
        lock(&self.inner.blocked_reason).clone()
    }

    /// Passes, fails, or waits, as was planned for `operation`.
    pub(super) async fn check(&self, operation: &'static str) -> Result<(), ServiceError> {
        let mut frozen = self.inner.frozen.subscribe();
        // The sender lives in `self`.
        let _ = frozen.wait_for(|frozen| !frozen).await;
        if *self.inner.down.borrow() {
            return Err(down(operation));
        }
        self.check_planned(operation)
    }

    /// The same for what needs no service: only a planned failure shows.
    pub(super) fn check_planned(&self, operation: &'static str) -> Result<(), ServiceError> {
        let mut planned = self.planned();
        match planned
            .iter()
            .position(|(planned, _)| *planned == operation)
        {
            None => Ok(()),
            Some(at) => {
                let kind = planned
                    .remove(at)
                    .map_or(ServiceErrorKind::Disconnected, |entry| entry.1);
                Err(ServiceError::new(
                    kind,
                    operation,
                    "memory",
                    "planned by a test",
                ))
            }
        }
    }

    /// Resolves when the service goes down.
    pub(super) async fn broken(&self, operation: &'static str) -> ServiceError {
        let mut down_now = self.inner.down.subscribe();
        let _ = down_now.wait_for(|down| *down).await;
        ServiceError::new(
            ServiceErrorKind::Disconnected,
            operation,
            "memory",
            "it went down",
        )
    }

    fn planned(&self) -> MutexGuard<'_, VecDeque<(&'static str, ServiceErrorKind)>> {
        lock(&self.inner.planned)
    }
}

fn down(operation: &'static str) -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Unreachable,
        operation,
        "memory",
        "it is down",
    )
}
