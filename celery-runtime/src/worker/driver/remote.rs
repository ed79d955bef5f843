//! RemoteControl control: the receiver of commands, own commands and elections.

use std::collections::HashMap;

use crate::worker::driver::command::Command;
use crate::worker::driver::command::election::Election;
use crate::worker::io::control_receiver::ControlReceiver;

/// RemoteControl control of a worker.
pub(crate) struct RemoteControl {
    pub(crate) receiver: ControlReceiver,
    /// Whether the worker still waits for the replies of its peers.
    pub(crate) is_mingling: bool,
    /// The commands that the application added.
    pub(crate) commands: HashMap<String, Command>,
    pub(crate) elections: Vec<Election>,
}

impl RemoteControl {
    pub(crate) fn new(receiver: ControlReceiver, commands: HashMap<String, Command>) -> Self {
        Self {
            receiver,
            is_mingling: false,
            commands,
            elections: Vec::new(),
        }
    }
}
