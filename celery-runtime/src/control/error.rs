//! What remote control fails with.

use celery_protocol::EncodeError;

use crate::boundary::ServiceError;

/// A command that was not sent, or whose replies could not be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// An argument has no form in JSON.
    #[error("cannot write command {command}: {cause}")]
    Encode {
        /// The command's name.
        command: String,
        /// What the serializer says.
        cause: EncodeError,
    },
    /// The destination has no worker in it. Workers would take it for all.
    #[error(
        "command {command} was not sent: its destination is empty (name a worker, or set no \
         destination to reach all)"
    )]
    Nobody {
        /// The command's name.
        command: String,
    },
    /// The store did not take what is to be remembered, so that the command was
    /// not sent.
    #[error("command {command} was not sent, since it cannot be remembered: {cause}")]
    Store {
        /// The command's name.
        command: String,
        /// What the store failed at.
        cause: ServiceError,
    },
    /// The broker did not take it.
    #[error("command {command} was not sent: {cause}")]
    Send {
        /// The command's name.
        command: String,
        /// What the broker failed at.
        cause: ServiceError,
    },
    /// The mailbox for replies could not be opened, so that the command was not
    /// sent; or it was lost before all of them were there.
    #[error("the replies to command {command} cannot be received: {cause}")]
    Receive {
        /// The command's name.
        command: String,
        /// What the broker failed at.
        cause: ServiceError,
    },
}

impl ControlError {
    /// Whether the same may succeed later. After a lost connection or a timeout
    /// workers may have the command already.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Send { cause, .. } | Self::Receive { cause, .. } | Self::Store { cause, .. } => {
                cause.is_transient()
            }
            Self::Encode { .. } | Self::Nobody { .. } => false,
        }
    }
}

/// A worker's answer that is an error, or none that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The worker says that it could not do it.
    #[error("worker {node} did not carry out {command}: {cause}")]
    Refused {
        /// The worker's name.
        node: String,
        /// The command's name.
        command: String,
        /// What the worker says.
        cause: String,
    },
    /// The answer is of another form than workers give.
    #[error("worker {node} answered {command} in a form that cannot be read: {cause}")]
    Unreadable {
        /// The worker's name.
        node: String,
        /// The command's name.
        command: String,
        /// What is missing.
        cause: String,
    },
}
