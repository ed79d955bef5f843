//! Restoring the deliveries of dead workers of this crate before the visibility
//! timeout.
//!
//! The tags of such a worker begin with its owner text. Tags of any other form, such as
//! kombu's, are never touched here.

use std::sync::LazyLock;

use bytes::Bytes;
use celery_runtime::ServiceError;

use crate::client::{Command, Operation, RedisReply, Script};
use crate::restore::BindingCache;
use crate::shared::Shared;

static OWNER_FORGET: LazyLock<Script> = LazyLock::new(|| script!("owner_forget.lua"));

const OPERATION: Operation<'static> = Operation::new("restore", "deliveries of a dead worker");

const LEAVE: Operation<'static> = Operation::new("remove", "the owner of deliveries");

/// The number of tags that one step of the scan reads.
const SCAN_COUNT: usize = 1000;

/// The number of entries per read; messages may be large.
const BATCH_SIZE: usize = 20;

/// An owner that has not renewed its entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeadOwner {
    pub(crate) owner: String,
    /// The time until which it counted as alive, as the server has written it.
    pub(crate) alive_until: String,
}

impl Shared {
    /// Restores the deliveries of a dead owner, and then removes its entry. An error
    /// leaves the rest to the next renewal of any worker.
    pub(crate) async fn rescue(&self, dead: &DeadOwner) {
        match self.with_restore_mutex(self.rescue_owner(dead)).await {
            Ok(None | Some(0)) => {}
            Ok(Some(count)) => {
                tracing::warn!(
                    count,
                    owner = dead.owner,
                    "restored deliveries of a dead worker"
                );
            }
            Err(error) => tracing::warn!(%error, "cannot restore deliveries of a dead worker"),
        }
    }

    async fn rescue_owner(&self, dead: &DeadOwner) -> Result<usize, ServiceError> {
        let mut tags = self.tags_of(&dead.owner).await?;
        // The delivery that is restored last is delivered first.
        tags.sort_by_key(|(tag, _)| std::cmp::Reverse(tag_number(tag)));
        let mut bindings = BindingCache::default();
        for chunk in tags.chunks(BATCH_SIZE) {
            let entries = self.entries(chunk).await?;
            let mut commands = Vec::with_capacity(chunk.len());
            for ((tag, score), entry) in chunk.iter().zip(entries) {
                if let Some(entry) = entry {
                    commands.push(
                        self.restore_command(&mut bindings, tag, &entry, score)
                            .await?,
                    );
                }
            }
            for answer in self.client.pipeline(OPERATION, commands).await? {
                answer?;
            }
        }
        let owners = self.client.options().layout.owners();
        let arguments = [dead.owner.as_bytes(), dead.alive_until.as_bytes()];
        self.client
            .script(OPERATION, &OWNER_FORGET, &[&owners], &arguments)
            .await?;
        Ok(tags.len())
    }

    /// Returns the tags of an owner with their scores.
    async fn tags_of(&self, owner: &str) -> Result<Vec<(String, String)>, ServiceError> {
        let index = self.client.options().layout.unacked_index();
        let pattern = format!("{owner}-*");
        let mut tags = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let scan = Command::new("ZSCAN")
                .arg(&index)
                .arg(&cursor)
                .args(["MATCH", &*pattern, "COUNT"])
                .number(SCAN_COUNT as i64);
            let mut reply = self.client.call(OPERATION, scan).await?.list().into_iter();
            cursor = reply.next().and_then(RedisReply::text).unwrap_or_default();
            let mut found = reply
                .next()
                .map(RedisReply::list)
                .unwrap_or_default()
                .into_iter();
            while let (Some(tag), Some(score)) = (found.next(), found.next()) {
                if let (Some(tag), Some(score)) = (tag.text(), score.text()) {
                    tags.push((tag, score));
                }
            }
            if matches!(&*cursor, "0" | "") {
                return Ok(tags);
            }
        }
    }

    async fn entries(&self, tags: &[(String, String)]) -> Result<Vec<Option<Bytes>>, ServiceError> {
        let unacked = self.client.options().layout.unacked();
        let command = Command::new("HMGET")
            .arg(unacked)
            .args(tags.iter().map(|(tag, _)| tag));
        let reply = self.client.call(OPERATION, command).await?;
        Ok(reply.list().into_iter().map(RedisReply::data).collect())
    }

    /// Removes an owner, or lets it count as dead at once if it still holds deliveries.
    pub(crate) async fn leave(&self, owner: &str, holds: bool) -> Result<(), ServiceError> {
        let owners = self.client.options().layout.owners();
        let command = match holds {
            true => Command::new("ZADD")
                .arg(owners)
                .arg("XX")
                .arg("0")
                .arg(owner),
            false => Command::new("ZREM").arg(owners).arg(owner),
        };
        self.client.call(LEAVE, command).await.map(drop)
    }
}

/// Returns the number of a tag of this crate, which grows with time.
fn tag_number(tag: &str) -> (u64, u64) {
    let unique = tag.split(':').next().unwrap_or_default();
    let mut parts = unique
        .rsplit('-')
        .map(|part| part.parse().unwrap_or_default());
    let number = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_ordered_by_consumer_and_number() {
        let mut tags = ["a-10-2:q", "a-9-3:q", "a-9-20:other"];
        tags.sort_by_key(|tag| tag_number(tag));
        assert_eq!(tags, ["a-9-3:q", "a-9-20:other", "a-10-2:q"]);
        assert_eq!(tag_number("6b29fc40-ca47-1067-b31d-00dd010662da"), (0, 0));
    }
}
