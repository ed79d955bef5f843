//! Calls of the result backend that are repeated after transient errors: [`ResultReader`].

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use celery_protocol::ResultDocument;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::boundary::{ResultBackend, ServiceError, ServiceErrorKind};
use crate::client::result::ResultError;
use crate::env;

/// The result backend, and the timeout of its operations.
#[derive(Debug)]
pub(crate) struct ResultReader {
    pub(crate) backend: Option<Arc<dyn ResultBackend>>,
    pub(crate) deadline: Duration,
    /// When a transient error was last logged.
    reported: Mutex<Option<Instant>>,
}

/// The minimum duration of a connection that resets the back-off. A server that closes connections as
/// soon as it has accepted them does not count as available.
const MIN_CONNECTION_AGE: Duration = Duration::from_secs(1);

impl ResultReader {
    pub(super) fn new(backend: Option<Arc<dyn ResultBackend>>, deadline: Duration) -> Self {
        Self {
            backend,
            deadline,
            reported: Mutex::default(),
        }
    }

    pub(super) fn backend(&self, id: &str) -> Result<&dyn ResultBackend, ResultError> {
        self.backend
            .as_deref()
            .ok_or_else(|| ResultError::NoBackend { id: id.to_owned() })
    }

    /// Waits until a task has ended, however long the backend is unavailable.
    pub(super) async fn wait(&self, id: &str) -> Result<ResultDocument<'static>, ResultError> {
        let backend = self.backend(id)?;
        Ok(self.without_deadline(|| backend.wait(id)).await?)
    }

    /// Runs a call, and retries transient errors for as long as they last.
    pub(super) async fn without_deadline<'a, T, F>(
        &self,
        call: impl FnMut() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>> + 'a,
    {
        retry_transient(call, |error| self.report(&error)).await
    }

    /// Runs a call that does not wait for a task, retries transient errors, and fails after the
    /// operation timeout.
    pub(super) async fn with_deadline<'a, T, F>(
        &self,
        operation: &'static str,
        call: impl FnMut() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>> + 'a,
    {
        let mut last = None;
        let retrying = retry_transient(call, |error| last = Some(error));
        match tokio::time::timeout(self.deadline, retrying).await {
            Ok(answer) => answer,
            Err(_) => Err(last
                .unwrap_or_else(|| ServiceError::no_answer(operation, "results", self.deadline))),
        }
    }

    /// Logs the error of a call that is repeated, at most once per operation timeout for all calls.
    fn report(&self, error: &ServiceError) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= self.deadline) {
            tracing::warn!("still waiting for results: {error}");
            *reported = Some(env::instant());
        }
    }
}

/// Repeats a call with a back-off while it fails with a transient error, which `on_error` receives.
async fn retry_transient<'a, T, F>(
    mut call: impl FnMut() -> F,
    mut on_error: impl FnMut(ServiceError),
) -> Result<T, ServiceError>
where
    F: Future<Output = Result<T, ServiceError>> + 'a,
{
    let mut attempt = 0;
    loop {
        let started = env::instant();
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => error,
        };
        let was_connected = started.elapsed() > MIN_CONNECTION_AGE;
        if was_connected && error.kind() == ServiceErrorKind::Disconnected {
            attempt = 0;
        }
        on_error(error);
        tokio::time::sleep(Backoff::CONNECTION.delay(attempt, env::random())).await;
        attempt = attempt.saturating_add(1);
    }
}
