//! Crashes and outages while tasks run: no accepted task is lost, and work
//! resumes soon.

mod killed_worker;
#[cfg(feature = "amqp")]
mod rabbitmq_channel;
#[cfg(feature = "amqp")]
mod rabbitmq_memory;
#[cfg(feature = "amqp")]
mod rabbitmq_outage;
#[cfg(feature = "amqp")]
mod rabbitmq_server;
mod redis_doubt;
mod redis_leases;
mod redis_outage;

use crate::support::{Accepted, RunLog, eventually};

/// Waits until `more` further tasks have run.
async fn wait_for_runs(runs: &RunLog, more: usize) {
    let before = runs.count();
    eventually("tasks run", async || {
        (runs.count() > before + more).then_some(())
    })
    .await;
}

/// Waits until every accepted task has run, and prints how many ran twice.
async fn assert_all_ran(runs: &RunLog, accepted: &Accepted) {
    eventually("all accepted tasks have run", async || {
        let ran = runs.distinct();
        accepted
            .keys()
            .all(|number| ran.contains(number))
            .then_some(())
    })
    .await;
    let (total, distinct) = (runs.count(), runs.distinct().len());
    println!(
        "{} tasks accepted, {distinct} ran, {} runs repeated",
        accepted.len(),
        total - distinct
    );
}
