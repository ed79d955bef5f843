//! The errors of remote control.

use celery_protocol::EncodeError;

use crate::boundary::ServiceError;

/// An error of sending a command or receiving its replies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// An argument cannot be encoded in JSON.
    #[error("cannot encode command {command}: {cause}")]
    Encode {
        /// The command's name.
        command: String,
        /// The error of the serializer.
        cause: EncodeError,
    },
    /// The destination is an empty list, which workers would treat as all workers.
    #[error(
        "command {command} was not sent: its destination is empty (name a worker, or set no \
         destination to address all)"
    )]
    EmptyDestination {
        /// The command's name.
        command: String,
    },
    /// The durable revocation could not be stored; the command was not sent.
    #[error("command {command} was not sent: cannot store its durable record: {cause}")]
    Store {
        /// The command's name.
        command: String,
        /// The error of the store.
        cause: ServiceError,
    },
    /// The broker did not accept the command.
    #[error("command {command} was not sent: {cause}")]
    Send {
        /// The command's name.
        command: String,
        /// The error of the broker.
        cause: ServiceError,
    },
    /// The mailbox for replies could not be opened, and the command was not sent; or
    /// the mailbox was lost before all replies were received.
    #[error("cannot receive the replies to command {command}: {cause}")]
    Receive {
        /// The command's name.
        command: String,
        /// The error of the broker.
        cause: ServiceError,
    },
}

impl ControlError {
    /// Returns whether the command may succeed when it is sent again. After a lost
    /// connection or a timeout, workers may have received it already.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Send { cause, .. } | Self::Receive { cause, .. } | Self::Store { cause, .. } => {
                cause.is_transient()
            }
            Self::Encode { .. } | Self::EmptyDestination { .. } => false,
        }
    }
}

/// An error in the reply of one worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The worker replied with an error.
    #[error("command {command} failed in worker {node}: {cause}")]
    Failed {
        /// The worker's name.
        node: String,
        /// The command's name.
        command: String,
        /// The error text of the worker.
        cause: String,
    },
    /// The reply has an unexpected form.
    #[error("cannot decode the reply of worker {node} to {command}: {cause}")]
    Decode {
        /// The worker's name.
        node: String,
        /// The command's name.
        command: String,
        /// The part that is missing or has another type.
        cause: String,
    },
}
