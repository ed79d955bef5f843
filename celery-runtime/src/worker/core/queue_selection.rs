//! Selects the queues that a worker consumes.

use std::sync::Arc;

use crate::boundary::Queue;
use crate::execution::Registry;
use crate::queues::{QueueNotFound, Queues};

/// Returns the queues that the worker consumes: the requested ones, otherwise the
/// configured ones, otherwise the default queue and those that its tasks declare.
pub(crate) fn select_queues(
    configured: &Queues,
    requested: &[String],
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let found = match requested {
        [] if configured.has_default_only() => default_and_declared(configured, registry)?,
        [] => configured.configured().to_vec(),
        requested => find_all(configured, requested.iter().map(String::as_str))?,
    };
    let for_worker = |queue: &Arc<Queue>| {
        if queue.is_broadcast() {
            Arc::new(queue.for_consumer())
        } else {
            Arc::clone(queue)
        }
    };
    Ok(found.iter().map(for_worker).collect())
}

fn default_and_declared(
    configured: &Queues,
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let declared = registry
        .iter()
        .filter_map(|task| task.declaration.queue.as_deref());
    let mut names: Vec<_> = declared.collect();
    names.sort_unstable();
    names.dedup();
    let default = configured.default_queue()?;
    names.retain(|name| *name != default.name);
    let mut found = vec![default];
    found.extend(find_all(configured, names)?);
    Ok(found)
}

fn find_all<'a>(
    configured: &Queues,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    names
        .into_iter()
        .map(|name| configured.find(name))
        .collect()
}
