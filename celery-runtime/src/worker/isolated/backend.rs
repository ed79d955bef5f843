//! The result backend of tasks in a child: the worker stores for them.

use std::sync::Arc;

use celery_protocol::{ResultDocument, ResultTree, Serializer};

use crate::boundary::{
    BackendCapabilities, BoxFuture, Record, ResultBackend, ServiceError, ServiceErrorKind,
};
use crate::worker::isolated::serve::ParentChannel;

/// Passes documents to the worker. Nothing can be read.
#[derive(Debug)]
pub(super) struct ChannelBackend {
    line: Arc<ParentChannel>,
}

impl ChannelBackend {
    pub(super) fn new(line: Arc<ParentChannel>) -> Self {
        Self { line }
    }
}

impl ResultBackend for ChannelBackend {
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            let id = &record.document.task_id;
            // Its values are copied as they are if they are in JSON, and
            // otherwise written anew by the backend.
            let document = record.document.encode(Serializer::Json).map_err(|error| {
                let object = format!("the state of task {id}");
                ServiceError::new(
                    ServiceErrorKind::Invalid,
                    "write",
                    object,
                    error.to_string(),
                )
            })?;
            match self.line.update(id, document).await {
                Some(refusal) => Err(refusal.into_error(id)),
                None => Ok(()),
            }
        })
    }

    fn fetch<'a>(
        &'a self,
        _ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        unsupported("read")
    }

    fn wait<'a>(
        &'a self,
        _id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        unsupported("wait for")
    }

    fn forget<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        unsupported("forget")
    }

    fn store_group<'a>(
        &'a self,
        _group: &'a ResultTree,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        unsupported("store a group of")
    }

    fn fetch_group<'a>(
        &'a self,
        _group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        unsupported("read a group of")
    }

    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities::new()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn unsupported<T: Send + 'static>(
    operation: &'static str,
) -> BoxFuture<'static, Result<T, ServiceError>> {
    let cause = "a child process only stores";
    let error = ServiceError::new(ServiceErrorKind::Unsupported, operation, "results", cause);
    Box::pin(std::future::ready(Err(error)))
}
