//! Remote control: the receiver of commands, own commands and elections.

use std::collections::HashMap;

use crate::worker::core::elections::Elections;
use crate::worker::driver::command::Command;
use crate::worker::io::control_receiver::ControlReceiver;

/// Remote control of a worker.
pub(crate) struct RemoteControl {
    pub(crate) receiver: ControlReceiver,
    /// Whether the worker still waits for the replies of its peers.
    pub(crate) is_mingling: bool,
    /// The commands that the application added.
    pub(crate) commands: HashMap<String, Command>,
    pub(crate) elections: Elections,
}

impl RemoteControl {
    pub(crate) fn new(
        receiver: ControlReceiver,
        commands: HashMap<String, Command>,
        elections: Elections,
    ) -> Self {
        Self {
            receiver,
            is_mingling: false,
            commands,
            elections,
        }
    }
}
