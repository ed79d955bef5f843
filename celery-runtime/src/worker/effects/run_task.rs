//! Runs the handler of one task. The driver spawns the future when the task has a
//! slot.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

use crate::env;
use crate::execution::{ErasedTask, Job, RunError};
use crate::worker::delivery::event::Outcome;

/// Runs a task to its end. A panic becomes its outcome.
pub(crate) async fn run(task: Arc<dyn ErasedTask>, job: Arc<Job>) -> Outcome {
    let returned = AssertUnwindSafe(task.run(job)).catch_unwind();
    match returned.await {
        Ok(Ok(value)) => Outcome::Value(value),
        Ok(Err(RunError::Error(error))) => Outcome::Error {
            error,
            random: env::random(),
        },
        Ok(Err(RunError::Panic(message))) => Outcome::Panic(message),
        Ok(Err(RunError::Lost(lost))) => Outcome::Lost(lost),
        Err(panic) => Outcome::Panic(panic_message(&*panic)),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the task panicked".to_owned())
}
