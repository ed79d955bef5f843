//! Returning deferred deliveries to their queues when a consumer stops.

use std::sync::LazyLock;

use celery_runtime::ServiceError;

use crate::client::{Operation, Script};
use crate::delayed::TakenTags;
use crate::entry::UnackedEntry;
use crate::keys::{DeliveryLocation, ParsedTag};
use crate::shared::Shared;

static RETURN: LazyLock<Script> = LazyLock::new(|| script!("return.lua"));

const OPERATION: Operation<'static> = Operation::new("return", "deferred deliveries");

/// The number of deliveries per call; the server runs nothing else meanwhile.
const CHUNK_SIZE: usize = 200;

/// The highest priority of kombu.
const MAX_PRIORITY: u8 = 9;

impl Shared {
    /// Returns the deferred deliveries of `queues` to the heads of their queues
    /// without the redelivered flags. The one that is due first is delivered
    /// first.
    ///
    /// # Errors
    ///
    /// If the server is unreachable or refuses a command. The error names the
    /// number of deliveries that were not returned; they stay deferred.
    ///
    /// # Cancel safety
    ///
    /// A dropped future logs that number.
    pub(crate) async fn return_deferred(&self, queues: &[String]) -> Result<(), ServiceError> {
        let mut returning = Returning {
            taken: self.delayed.take_all(queues),
            is_reported: false,
        };
        let taken = &mut returning.taken;
        taken.sort_for_return();
        while let Some(first) = taken.first() {
            let returned = match ParsedTag::parse(first).location {
                DeliveryLocation::Unacked => self.return_chunk(taken).await,
                DeliveryLocation::Quarantine => self.return_first(taken).await,
            };
            if let Err(error) = returned {
                let error = not_returned(error, taken.len());
                returning.is_reported = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the first deliveries of one queue.
    async fn return_chunk(&self, taken: &mut TakenTags<'_>) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let first = ParsedTag::parse(taken.first().unwrap_or_default());
        let suffix = UnackedEntry::suffix(first.queue);
        let lists = (0..=MAX_PRIORITY).map(|priority| layout.list_for(first.queue, Some(priority)));
        let keys = [layout.unacked(), layout.unacked_index()];
        let keys: Vec<String> = keys.into_iter().chain(lists).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let tags = taken
            .iter()
            .take_while(|tag| ParsedTag::parse(tag) == first);
        let tags = tags.take(CHUNK_SIZE).map(str::as_bytes);
        let arguments: Vec<&[u8]> = std::iter::once(suffix.as_bytes()).chain(tags).collect();
        let done = self
            .client
            .script(OPERATION, &RETURN, &keys, &arguments)
            .await?;
        match done.number() {
            0 => self.return_first(taken).await?,
            count => drop(taken.done(usize::try_from(count).unwrap_or_default())),
        }
        Ok(())
    }

    /// Returns the first delivery, whose entry has a form that this process has
    /// to read.
    async fn return_first(&self, taken: &mut TakenTags<'_>) -> Result<(), ServiceError> {
        let first = taken.first().unwrap_or_default();
        self.return_unchanged(first).await?;
        taken.done(1);
        Ok(())
    }
}

/// A return in progress. A stop has a time limit, and drops the future at its
/// end.
struct Returning<'a> {
    taken: TakenTags<'a>,
    is_reported: bool,
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        let count = self.taken.len();
        if count > 0 && !self.is_reported {
            tracing::warn!(count, "no time to return all deferred deliveries: {REMEDY}");
        }
    }
}

const REMEDY: &str = "they stay unacked; a worker restores each when it is due";

/// Returns the error of a stop that left deliveries unacked.
fn not_returned(error: ServiceError, count: usize) -> ServiceError {
    let object = format!("{count} deferred deliveries");
    ServiceError::new(error.kind(), "return", object, error.to_string())
        .with_source(error)
        .with_remedy(REMEDY)
}
