//! Failures that tests switch on: [`Faults`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::boundary::{ServiceError, ServiceErrorKind};
use crate::memory::lock;

/// Makes the in-memory broker or result backend fail on demand. Clones share their
/// state.
///
/// ```
/// use celery_runtime::memory::MemoryBroker;
///
/// let broker = MemoryBroker::new();
/// broker.faults().go_down();
/// // … every call fails as if the server were unreachable …
/// broker.faults().come_back();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults {
    inner: Arc<FaultState>,
}

#[derive(Debug, Default)]
struct FaultState {
    planned: Mutex<VecDeque<(&'static str, ServiceErrorKind)>>,
    down: watch::Sender<bool>,
    frozen: watch::Sender<bool>,
    blocked_reason: Mutex<Option<String>>,
}

impl Faults {
    /// Makes every call fail with [`ServiceErrorKind::Unreachable`] from now on, and
    /// the pending ones with [`ServiceErrorKind::Disconnected`].
    pub fn go_down(&self) {
        self.inner.down.send_replace(true);
    }

    /// Ends [`go_down`](Self::go_down).
    pub fn come_back(&self) {
        self.inner.down.send_replace(false);
    }

    /// Makes every call wait for an answer from now on, as on an open connection to a
    /// server that does not respond.
    pub fn freeze(&self) {
        self.inner.frozen.send_replace(true);
    }

    /// Makes every call wait for an answer, and [`Broker::blocked_reason`] return this
    /// reason.
    ///
    /// [`Broker::blocked_reason`]: crate::boundary::Broker::blocked_reason
    pub fn block(&self, reason: impl Into<String>) {
        *lock(&self.inner.blocked_reason) = Some(reason.into());
        self.freeze();
    }

    /// Ends [`freeze`](Self::freeze) and [`block`](Self::block).
    pub fn thaw(&self) {
        *lock(&self.inner.blocked_reason) = None;
        self.inner.frozen.send_replace(false);
    }

    /// Makes the next call of `operation`, the name of a trait's method, fail with
    /// this kind of error and without an effect. Each call of `fail_next` plans one
    /// failure.
    pub fn fail_next(&self, operation: &'static str, kind: ServiceErrorKind) {
        self.planned().push_back((operation, kind));
    }

    pub(super) fn blocked_reason(&self) -> Option<String> {
        lock(&self.inner.blocked_reason).clone()
    }

    /// Waits while frozen, and fails if the service is down or a failure is planned
    /// for `operation`.
    pub(super) async fn check(&self, operation: &'static str) -> Result<(), ServiceError> {
        let mut frozen = self.inner.frozen.subscribe();
        // The sender lives in `self`.
        let _ = frozen.wait_for(|frozen| !frozen).await;
        if *self.inner.down.borrow() {
            return Err(down(operation));
        }
        self.check_planned(operation)
    }

    /// Fails if a failure is planned for `operation`, which needs no connection.
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

    /// Returns an error when the service goes down.
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
