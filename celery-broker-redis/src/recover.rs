//! Finding what earlier consumers left.

use std::time::SystemTime;

use celery_runtime::ServiceError;

use crate::link::{Attempt, Command, Reply};
use crate::shared::Shared;
use crate::unconfirmed::Doubt;

/// How many tags are asked for at a time.
const CHUNK: usize = 1000;

impl Shared {
    /// Looks for what takings in doubt have taken from these queues; it is due
    /// at once.
    pub(crate) async fn resolve_doubts(
        &self,
        attempt: Attempt<'_>,
        queues: &[String],
    ) -> Result<(), ServiceError> {
        let doubts = self.doubts.take(queues);
        let tags: Vec<String> = doubts.iter().flat_map(Doubt::tags).collect();
        for chunk in tags.chunks(CHUNK) {
            if let Err(error) = self.find(attempt, chunk).await {
                doubts.into_iter().for_each(|doubt| self.doubts.add(doubt));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn find(&self, attempt: Attempt<'_>, tags: &[String]) -> Result<(), ServiceError> {
        let unacked = self.link.options().layout.unacked();
        let look = tags
            .iter()
            .map(|tag| Command::new("HEXISTS").arg(&unacked).arg(tag));
        let found = self.link.atomic(attempt, look.collect()).await?;
        let now = SystemTime::now();
        for (tag, found) in tags.iter().zip(found) {
            if found.number() == 1 {
                self.parked.add(tag, now);
            }
        }
        Ok(())
    }

    /// The tags in the holding hashes of the queues.
    pub(crate) async fn left_behind(
        &self,
        attempt: Attempt<'_>,
        queues: &[String],
    ) -> Result<Vec<String>, ServiceError> {
        let layout = &self.link.options().layout;
        let commands = queues
            .iter()
            .map(|queue| Command::new("HKEYS").arg(layout.holding(queue)));
        let answers = self.link.pipeline(attempt, commands.collect()).await?;
        let mut left = Vec::new();
        for answer in answers {
            left.extend(answer?.list().into_iter().filter_map(Reply::text));
        }
        Ok(left)
    }
}
