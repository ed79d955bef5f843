//! Calls of other tasks without a message, as `celery.map` makes them.

use std::sync::Arc;

use celery_protocol::{EncodeError, Raw, Serializer};
use serde::Serialize;

use crate::execution::context::Context;
use crate::execution::erased::RunError;
use crate::execution::error::TaskError;
use crate::execution::job::Job;

impl<S> Context<S> {
    /// Encodes `value` with the serializer of this task's message, which the worker accepts.
    pub(crate) fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<Raw<'static>, EncodeError> {
        let payload = self.job().payload();
        let serializer = payload.map_or(Serializer::Json, |payload| payload.serializer());
        Raw::encode(serializer, value)
    }

    /// Calls another task of this worker as a function, and returns its encoded result.
    ///
    /// # Errors
    ///
    /// Fails if the task is not registered, cannot be started, or does not return a value.
    pub(crate) async fn call(
        &self,
        task: &str,
        args: Raw<'_>,
        kwargs: Raw<'_>,
    ) -> Result<Raw<'static>, TaskError> {
        let job = self.job();
        let services = Arc::clone(&job.services);
        let entry = services
            .registry
            .find(task)
            .ok_or_else(|| TaskError::named("celery.exceptions", "NotRegistered", task))?;
        let (run, name) = (Arc::clone(&entry.run), Arc::clone(&entry.name));
        let args = self.encode(&args)?;
        let call = Job::in_place(Arc::clone(&services), &job.id, name, &args, &kwargs, None)?;
        match run.run(Arc::new(call)).await {
            Ok(value) => Ok(value.unwrap_or(Raw::NULL)),
            Err(RunError::Error(error)) => Err(error.into_call_failure()),
            Err(RunError::Panic(message)) => Err(TaskError::named("rust", "Panic", message)),
            Err(RunError::Lost(lost)) => {
                let module = "billiard.exceptions";
                Err(TaskError::named(module, "WorkerLostError", lost.message))
            }
        }
    }
}
