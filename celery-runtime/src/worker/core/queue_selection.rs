//! Which queues a worker consumes.

use std::sync::Arc;

use crate::boundary::Queue;
use crate::execution::Registry;
use crate::queues::{QueueNotFound, Queues};

/// What the worker consumes: as asked, as configured, or what its tasks need.
pub(crate) fn queues(
    known: &Queues,
    asked: &[String],
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let found = match asked {
        [] if known.has_default_only() => default_and_declared(known, registry)?,
        [] => known.configured().to_vec(),
        asked => find_all(known, asked.iter().map(String::as_str))?,
    };
    let own = |queue: &Arc<Queue>| match queue.is_broadcast() {
        true => Arc::new(queue.for_consumer()),
        false => Arc::clone(queue),
    };
    Ok(found.iter().map(own).collect())
}

fn default_and_declared(
    known: &Queues,
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let declared = registry
        .iter()
        .filter_map(|task| task.declaration.queue.as_deref());
    let mut names: Vec<_> = declared.collect();
    names.sort_unstable();
    names.dedup();
    let default = known.default_queue()?;
    names.retain(|name| *name != default.name);
    let mut found = vec![default];
    found.extend(find_all(known, names)?);
    Ok(found)
}

fn find_all<'a>(
    known: &Queues,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    names.into_iter().map(|name| known.find(name)).collect()
}
