//! The tasks that every worker of Celery's serves.

use super::Task;
use super::error::TaskError;
use super::registry::Tasks;

/// Answers `pong`, so that it can be seen whether tasks get through.
const PING: Task<(), String> = Task::new("celery.ping").params(&[]);

/// Sent once a day by Celery's scheduler.
const BACKEND_CLEANUP: Task<(), ()> = Task::new("celery.backend_cleanup").params(&[]);

/// All of them. A worker's own task of the same name goes before.
pub(crate) fn all() -> Tasks {
    Tasks::new()
        .with(PING, async || Ok::<_, TaskError>("pong".to_owned()))
        // Every backend there is lets its results expire by itself.
        .with(BACKEND_CLEANUP, async || Ok::<_, TaskError>(()))
}
