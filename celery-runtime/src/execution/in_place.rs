//! Tasks that are called without a message: by `celery.map`, and as errbacks.

use std::sync::{Arc, Mutex, OnceLock};

use celery_protocol::{Embed, EncodeError, Message, Raw, Serializer, TaskHeaders, encode_body};
use serde::Serialize;

use crate::execution::context::{Context, Job, TaskControl, WorkerContext};
use crate::execution::error::TaskError;
use crate::execution::failed::FailureContext;
use crate::execution::registry::{Invocation, RunError};

impl Job {
    /// A call that no message asks for. Nobody waits for its result.
    pub(crate) fn in_place(
        services: Arc<WorkerContext>,
        id: &str,
        task: Arc<str>,
        args: &Raw<'_>,
        kwargs: &Raw<'_>,
        failure: Option<Arc<FailureContext>>,
    ) -> Result<Self, EncodeError> {
        let serializer = args.serializer();
        let body = encode_body(serializer, args, kwargs, &Embed::default())?;
        let headers = TaskHeaders::new(task.to_string(), id.to_owned());
        Ok(Self {
            id: id.to_owned(),
            task,
            retries: 0,
            redelivered: false,
            stores_result: false,
            wants_value: true,
            soft_limit: None,
            hard_limit: None,
            message: Message::task(headers, serializer, body),
            uncompressed: OnceLock::new(),
            services,
            control: TaskControl::default(),
            children: Mutex::default(),
            failure,
        })
    }
}

impl<S> Context<S> {
    /// A value written as this task's message is, which the worker accepts.
    pub(crate) fn written<T: Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<Raw<'static>, EncodeError> {
        let payload = self.job().payload();
        let serializer = payload.map_or(Serializer::Json, |payload| payload.serializer());
        Raw::encode(serializer, value)
    }

    /// Calls another task of this worker, as a function.
    pub(crate) async fn call(
        &self,
        task: &str,
        args: Raw<'_>,
        kwargs: Raw<'_>,
    ) -> Result<Raw<'static>, TaskError> {
        let job = self.job();
        let services = Arc::clone(&job.services);
        let registered = services
            .registry
            .find(task)
            .ok_or_else(|| TaskError::named("celery.exceptions", "NotRegistered", task))?;
        let (run, name) = (Arc::clone(&registered.run), Arc::clone(&registered.name));
        let args = self.written(&args)?;
        let inner = Job::in_place(Arc::clone(&services), &job.id, name, &args, &kwargs, None)?;
        match run
            .run(Invocation {
                job: Arc::new(inner),
            })
            .await
        {
            Ok(value) => Ok(value.unwrap_or(Raw::NULL)),
            Err(RunError::Error(error)) => Err(error.of_a_call()),
            Err(RunError::Panic(message)) => Err(TaskError::named("rust", "Panic", message)),
            Err(RunError::Lost(loss)) => {
                let module = "billiard.exceptions";
                Err(TaskError::named(module, "WorkerLostError", loss.message))
            }
        }
    }
}
