//! Parts of a worker that own connections, tasks, threads or files.

pub(crate) mod admission;
pub(crate) mod connection;
pub(crate) mod control_receiver;
pub(crate) mod event_dispatcher;
pub(crate) mod event_publisher;
pub(crate) mod mingle;
pub(crate) mod monitor;
pub(crate) mod remote;
pub(crate) mod shutdown;
pub(crate) mod state_file;
pub(crate) mod supervisor;
pub(crate) mod sweeper;
pub(crate) mod watchdog;
