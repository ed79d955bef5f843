//! What an errback is told: [`FailedTask`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use celery_protocol::{EncodeError, Exception, Raw};

use crate::execution::context::Context;

/// The task that failed, for the errbacks of
/// [`Tasks::errback`](crate::Tasks::errback).
///
/// Where a chord fails because of its header, it is the body, which never ran.
pub struct FailedTask<S = ()> {
    failure: Arc<FailureContext>,
    context: Context<S>,
}

/// Celery's request, exception and traceback.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FailureContext {
    pub(crate) id: String,
    pub(crate) task: Option<String>,
    pub(crate) root_id: Option<String>,
    pub(crate) exception: Option<Exception>,
    pub(crate) traceback: Option<String>,
}

impl<S> FailedTask<S> {
    pub(crate) fn new(context: Context<S>) -> Self {
        let failure = context.job().failure.clone();
        // Only errbacks are run by these handlers.
        let failure = failure.unwrap_or_else(|| Arc::new(FailureContext::of_id(String::new())));
        Self { failure, context }
    }

    /// The id of the task.
    pub fn id(&self) -> &str {
        &self.failure.id
    }

    /// Its name, where it is known: not to an errback that came as a message,
    /// because the worker of the task does not have it.
    pub fn task(&self) -> Option<&str> {
        self.failure.task.as_deref()
    }

    /// The id of the first task of the workflow, where it is known.
    pub fn root_id(&self) -> Option<&str> {
        self.failure.root_id.as_deref()
    }

    /// What it failed with, where that is known; else the result backend has it.
    pub fn exception(&self) -> Option<&Exception> {
        self.failure.exception.as_ref()
    }

    /// Where it failed, if anybody knows.
    pub fn traceback(&self) -> Option<&str> {
        self.failure.traceback.as_deref()
    }

    /// The application's state.
    pub fn state(&self) -> &S {
        self.context.state()
    }

    /// What the errback knows about itself. Called in place it has no message of
    /// its own: its id is that of the failed task.
    pub fn context(&self) -> &Context<S> {
        &self.context
    }
}

impl FailureContext {
    /// These arguments with Celery's three before them.
    pub(crate) fn before(&self, args: &Raw<'_>) -> Result<Raw<'static>, EncodeError> {
        let serializer = args.serializer();
        let own = args.elements();
        let own = own.map_err(|error| EncodeError::new(error.to_string()))?;
        let request = [
            ("id", Some(&self.id)),
            ("task", self.task.as_ref()),
            ("root_id", self.root_id.as_ref()),
        ];
        let request: HashMap<_, _> = request.into_iter().collect();
        let mut all = vec![
            Raw::encode(serializer, &request)?,
            Raw::encode(serializer, &self.exception)?,
            Raw::encode(serializer, &self.traceback)?,
        ];
        all.extend(own.into_iter().map(Raw::into_owned));
        Raw::encode(serializer, &all)
    }

    /// All that a message says.
    pub(crate) fn of_id(id: String) -> Self {
        Self {
            id,
            task: None,
            root_id: None,
            exception: None,
            traceback: None,
        }
    }
}

impl<S> fmt::Debug for FailedTask<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailedTask")
            .field("task", &self.failure.task)
            .field("id", &self.failure.id)
            .finish_non_exhaustive()
    }
}
