//! The state that clones of the broker share.

use std::sync::Arc;

use celery_runtime::ServiceError;

use crate::connection::AmqpConnection;
use crate::connection_manager::ConnectionManager;
use crate::error::ErrorContext;
use crate::options::AmqpOptions;
use crate::transient_slot::SharedTransientSlot;

/// The options of a broker and its two connections.
///
/// RabbitMQ stops reading from connections that publish when it is short of
/// memory or disk, so consuming and everything else has a connection of its own.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Arc<AmqpOptions>,
    pub(crate) publishing: ConnectionManager,
    pub(crate) consuming: ConnectionManager,
}

impl Shared {
    pub(crate) fn new(options: AmqpOptions) -> Self {
        let options = Arc::new(options);
        let (targets, transient) = (Arc::default(), SharedTransientSlot::default());
        let manager = |purpose| {
            let (targets, transient) = (Arc::clone(&targets), Arc::clone(&transient));
            ConnectionManager::new(Arc::clone(&options), purpose, targets, transient)
        };
        Self {
            publishing: manager("publishes"),
            consuming: manager("consumes"),
            options,
        }
    }

    /// Returns the context for the errors of an operation.
    pub(crate) fn context<'a>(
        &'a self,
        operation: &'static str,
        object: &'a str,
    ) -> ErrorContext<'a> {
        ErrorContext::new(operation, object, self.options.address())
    }

    /// Returns the connection for declarations and queries. It is not the one for
    /// publishing, because a worker must be able to consume while RabbitMQ blocks
    /// publishing.
    pub(crate) async fn connection(
        &self,
        operation: &'static str,
        object: &str,
    ) -> Result<Arc<AmqpConnection>, ServiceError> {
        self.consuming
            .connection(self.context(operation, object))
            .await
    }
}
