//! The result backend in a child process: the parent worker stores the results.

use std::sync::Arc;

use celery_protocol::{ResultDocument, ResultTree, Serializer};

use crate::boundary::{
    BackendCapabilities, BoxFuture, ResultBackend, ResultRecord, ServiceError, ServiceErrorKind,
};
use crate::worker::isolated::serve::ParentChannel;

/// Sends result documents to the parent worker. Reading is not supported.
#[derive(Debug)]
pub(super) struct ChannelBackend {
    channel: Arc<ParentChannel>,
}

impl ChannelBackend {
    pub(super) fn new(channel: Arc<ParentChannel>) -> Self {
        Self { channel }
    }
}

impl ResultBackend for ChannelBackend {
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            let id = &record.document.task_id;
            // The parent's backend copies values that are in JSON unchanged, and
            // encodes others again.
            let document = record.document.encode(Serializer::Json).map_err(|error| {
                let object = format!("the state of task {id}");
                ServiceError::new(
                    ServiceErrorKind::Invalid,
                    "write",
                    object,
                    error.to_string(),
                )
            })?;
            match self.channel.update(id, document).await {
                Some(error) => Err(error.into_error(id)),
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
    let cause = "isolated tasks can only store results";
    let error = ServiceError::new(ServiceErrorKind::Unsupported, operation, "results", cause);
    Box::pin(std::future::ready(Err(error)))
}
