//! Remote control of a worker, and what it receives from other workers: [`Remote`].

use std::collections::HashMap;

use celery_protocol::{ControlReply, Map, Value};
use futures_util::FutureExt;

use crate::boundary::BoxFuture;
use crate::worker::core::elections::Elections;
use crate::worker::io::control_receiver::{ControlReceiver, Incoming};

/// A command that the application adds with
/// [`Worker::command`](crate::Worker::command).
pub(crate) type Command = Box<dyn Fn(&Map) -> Result<Value, String> + Send>;

/// The replies of the peers to `hello`.
pub(crate) type Mingle = BoxFuture<'static, Vec<ControlReply>>;

/// The receiver of control commands and election events, the application's own
/// commands, and the elections.
pub(crate) struct Remote {
    receiver: ControlReceiver,
    /// The question to the peers, until it is started.
    mingle: Option<Mingle>,
    /// Whether the worker still waits for the replies of its peers.
    is_mingling: bool,
    commands: HashMap<String, Command>,
    pub(crate) elections: Elections,
}

impl Remote {
    /// `commands` are those of the application, by name.
    pub(crate) fn new(
        receiver: ControlReceiver,
        mingle: Option<Mingle>,
        commands: HashMap<String, Command>,
        elections: Elections,
    ) -> Self {
        Self {
            receiver,
            is_mingling: mingle.is_some(),
            mingle,
            commands,
            elections,
        }
    }

    /// Waits for the next command or events.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        self.receiver.next().await
    }

    /// Returns the next command or events if they have arrived.
    pub(crate) fn try_next(&mut self) -> Option<Incoming> {
        self.next().now_or_never()
    }

    /// Runs a command of the application; `None` if there is none of this name.
    pub(crate) fn run(&self, name: &str, arguments: &Map) -> Option<Result<Value, String>> {
        let command = self.commands.get(name)?;
        Some(command(arguments))
    }

    /// Returns the question to the peers, whose end is reported to
    /// [`mingled`](Self::mingled).
    pub(crate) fn mingle(&mut self) -> Option<Mingle> {
        self.mingle.take()
    }

    pub(crate) fn is_mingling(&self) -> bool {
        self.is_mingling
    }

    /// Records that the peers have replied.
    pub(crate) fn mingled(&mut self) {
        self.is_mingling = false;
    }
}
