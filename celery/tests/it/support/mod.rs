//! Helpers of the tests: servers with a configuration, workers on them, and
//! Python programs beside them.

mod broker_matrix;
mod broker_state;
mod load;
mod process;
mod setup;
mod tasks;
mod vhost;

pub(crate) use broker_matrix::{broker_test, for_each_broker};
pub(crate) use load::{Accepted, Producer, assert_sums, count_done, send_adds, send_sleeps};
pub(crate) use process::WorkerProcess;
pub(crate) use setup::{Setup, fast_restore, start_python};
pub(crate) use tasks::{HOP, LANGUAGE, NOW, RECORD, REJECT, RETRY_TIMES, RunLog, test_tasks};
pub(crate) use test_support::{
    MessageExt, RedisState, RunningWorker, TIMEOUT, TempDir, blocking, eventually, example,
    send_signal, within,
};
pub(crate) use vhost::Vhost;
