//! Recovery of deliveries that earlier consumers fetched and did not settle.

use celery_runtime::{ServiceError, ServiceErrorKind, env};

use crate::client::{Command, Operation, RedisReply};
use crate::keys::ParsedTag;
use crate::lease::Leases;
use crate::shared::Shared;
use crate::unconfirmed::UnconfirmedFetch;

/// The number of tags that one command batch looks up.
const LOOKUP_BATCH_SIZE: usize = 1000;

impl Shared {
    /// Finds the deliveries of a worker's unconfirmed fetches, and makes them due
    /// immediately. Those of a queue that it consumes no more return to it. A fetch whose
    /// request may still arrive is looked up again later.
    pub(crate) async fn recover_unconfirmed(
        &self,
        operation: Operation<'_>,
        leases: &Leases,
    ) -> Result<(), ServiceError> {
        let fetches = self.unconfirmed.of(leases.owner());
        let tags: Vec<String> = fetches.iter().flat_map(UnconfirmedFetch::tags).collect();
        for chunk in tags.chunks(LOOKUP_BATCH_SIZE) {
            self.make_due_if_unacked(operation, leases, chunk).await?;
        }
        // The first request after a lost one shows whether connections can be killed.
        let is_final =
            |fetch: &UnconfirmedFetch| self.client.discards_lost_requests() || !fetch.may_arrive();
        self.unconfirmed
            .remove(|fetch| fetches.contains(fetch) && is_final(fetch));
        Ok(())
    }

    /// Makes those tags due that are unacked on the server and not in hand yet.
    async fn make_due_if_unacked(
        &self,
        operation: Operation<'_>,
        leases: &Leases,
        tags: &[String],
    ) -> Result<(), ServiceError> {
        let unacked = self.client.options().layout.unacked();
        let commands = tags
            .iter()
            .map(|tag| Command::new("HEXISTS").arg(&unacked).arg(tag));
        let found = self.client.atomic(operation, commands.collect()).await?;
        let now = env::system_time();
        for (tag, found) in tags.iter().zip(found) {
            if found.number() == 0 || leases.holds(tag) {
                continue;
            }
            if leases.consumes(ParsedTag::parse(tag).queue) {
                leases.hold(tag);
                self.delayed.add(tag, now);
            } else {
                self.return_unchanged(tag).await?;
            }
        }
        Ok(())
    }

    /// Returns the tags in the quarantine hashes of the queues.
    pub(crate) async fn quarantined_tags(
        &self,
        operation: Operation<'_>,
        queues: &[String],
    ) -> Result<Vec<String>, ServiceError> {
        let layout = &self.client.options().layout;
        let commands = queues
            .iter()
            .map(|queue| Command::new("HKEYS").arg(layout.quarantine(queue)));
        let answers = self.client.pipeline(operation, commands.collect()).await?;
        let mut tags = Vec::new();
        for answer in answers {
            let keys = match answer {
                Ok(keys) => keys,
                // Permissions for kombu's keys suffice while all messages are valid.
                Err(error) if error.kind() == ServiceErrorKind::Denied => {
                    tracing::debug!(%error, "cannot look for quarantined messages");
                    continue;
                }
                Err(error) => return Err(error),
            };
            tags.extend(keys.list().into_iter().filter_map(RedisReply::text));
        }
        Ok(tags)
    }
}
