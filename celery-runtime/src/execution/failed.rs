//! The failed task that an errback receives: [`FailedTask`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use celery_protocol::{EncodeError, Exception, Raw};

use crate::execution::context::Context;
use crate::execution::failure::FailureInfo;

/// The failed task, passed to the errbacks registered with
/// [`Tasks::errback`](crate::Tasks::errback).
///
/// If a chord fails because of its header, this is the body, which was never run.
pub struct FailedTask<S = ()> {
    failure: Arc<FailureContext>,
    context: Context<S>,
}

/// The arguments of an errback: Celery's request, exception and traceback.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FailureContext {
    pub(crate) id: String,
    pub(crate) task: Option<String>,
    pub(crate) root_id: Option<String>,
    /// Unknown if the errback was sent as a message, which contains the id only.
    pub(crate) info: Option<FailureInfo>,
}

impl<S> FailedTask<S> {
    pub(crate) fn new(context: Context<S>) -> Self {
        let failure = context.job().failure.clone();
        // Jobs of these handlers have a failure: `Errback` adds it to those that come as messages.
        let failure = failure.unwrap_or_else(|| Arc::new(FailureContext::of_id(String::new())));
        Self { failure, context }
    }

    /// Returns the id of the failed task.
    pub fn id(&self) -> &str {
        &self.failure.id
    }

    /// Returns the name of the failed task; `None` if the errback was sent as a message, because
    /// the worker of the failed task does not serve it.
    pub fn task(&self) -> Option<&str> {
        self.failure.task.as_deref()
    }

    /// Returns the id of the first task of the workflow, if it is known.
    pub fn root_id(&self) -> Option<&str> {
        self.failure.root_id.as_deref()
    }

    /// Returns the exception of the failed task; `None` if the errback was sent as a message. The
    /// result backend may have it then.
    pub fn exception(&self) -> Option<&Exception> {
        Some(&self.failure.info.as_ref()?.exception)
    }

    /// Returns the traceback of the failed task, if it is known.
    pub fn traceback(&self) -> Option<&str> {
        self.failure.info.as_ref()?.traceback.as_deref()
    }

    /// Returns the application's state.
    pub fn state(&self) -> &S {
        self.context.state()
    }

    /// Returns the context of the errback itself. An errback that is called in place has no message
    /// of its own: its id is that of the failed task.
    pub fn context(&self) -> &Context<S> {
        &self.context
    }
}

impl FailureContext {
    /// Returns `args` with Celery's three arguments of an errback before them: request, exception
    /// and traceback.
    pub(crate) fn prepend_to(&self, args: &Raw<'_>) -> Result<Raw<'static>, EncodeError> {
        let serializer = args.serializer();
        let own = args.elements();
        let own = own.map_err(|error| EncodeError::new(error.to_string()))?;
        let request = BTreeMap::from([
            ("id", Some(&self.id)),
            ("task", self.task.as_ref()),
            ("root_id", self.root_id.as_ref()),
        ]);
        let exception = self.info.as_ref().map(|info| &info.exception);
        let traceback = self.info.as_ref().and_then(|info| info.traceback.as_ref());
        let mut all = vec![
            Raw::encode(serializer, &request)?,
            Raw::encode(serializer, &exception)?,
            Raw::encode(serializer, &traceback)?,
        ];
        all.extend(own.into_iter().map(Raw::into_owned));
        Raw::encode(serializer, &all)
    }

    /// Creates the context of an errback that was sent as a message, which contains the id only.
    pub(crate) fn of_id(id: String) -> Self {
        Self {
            id,
            task: None,
            root_id: None,
            info: None,
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
