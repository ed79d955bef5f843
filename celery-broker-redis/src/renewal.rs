//! Renewing what a worker holds on the server; see [`lease`](crate::lease).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery_runtime::{DeliveryOwner, ServiceError, env};
use tokio::task::JoinHandle;

use crate::client::{Command, DedicatedConnection, Operation, RedisReply, Script};
use crate::lease::{Leases, OpenConsumer};
use crate::rescue::DeadOwner;
use crate::shared::Shared;

static RENEW: LazyLock<Script> = LazyLock::new(|| script!("renew.lua"));
static OWNER_RENEW: LazyLock<Script> = LazyLock::new(|| script!("owner_renew.lua"));

const OPERATION: Operation<'static> = Operation::new("renew", "deliveries");
const OWNER_OPERATION: Operation<'static> = Operation::new("renew", "the owner of deliveries");

/// The number of tags in one request.
const CHUNK_SIZE: usize = 1000;

/// The number of dead owners that one renewal lists.
const MAX_DEAD_OWNERS: usize = 1000;

/// The time after which the owners are forgotten if no worker renews any.
const OWNERS_EXPIRE: Duration = Duration::from_secs(24 * 3600);

/// How often an owner has to be listed as dead.
const CONFIRMATIONS: u32 = 3;

/// The owners of the last list: until when each counted as alive, and how often it was
/// listed with that time.
type Suspects = HashMap<String, (String, u32)>;

/// The answer to the renewal of an owner.
enum OwnerRenewal {
    /// It is renewed; these owners are not.
    Renewed(Vec<DeadOwner>),
    /// The server's memory is full. No worker can renew its owner.
    MemoryFull,
    /// The worker has no owner entry.
    Off,
}

impl Shared {
    /// Renews what a worker holds and opens a consumer, which keeps it renewed.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub(crate) async fn open_consumer(
        self: &Arc<Self>,
        worker: &Arc<DeliveryOwner>,
        queues: &[String],
    ) -> Result<OpenConsumer, ServiceError> {
        let leases = self.leases.of(worker);
        let mut connection = self.client.dedicated(OPERATION).await?;
        self.renew(&leases, &mut connection, true).await?;
        let consumer = leases.open(worker, queues);
        leases.start_renewal(|| {
            let renewal = run(Arc::clone(self), Arc::clone(&leases), connection);
            env::spawn(renewal)
        });
        Ok(consumer)
    }

    /// Renews the owner and, with `renews_held`, the deliveries in hand, which are current
    /// only after both. Returns the owners that are not renewed, if they are dead.
    async fn renew(
        &self,
        leases: &Leases,
        connection: &mut DedicatedConnection,
        renews_held: bool,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let rescue_after = self.client.options().layout.rescue_after;
        let requested_at = env::instant();
        let renewal = self.renew_owner(leases, connection).await?;
        // The leases may have expired before the answer arrived.
        if renews_held || !leases.are_current(rescue_after) {
            self.renew_held(leases, connection).await?;
        }
        let is_written = matches!(renewal, OwnerRenewal::Renewed(_));
        leases.owner_renewed(requested_at, rescue_after, is_written);
        Ok(match renewal {
            OwnerRenewal::Renewed(dead) if leases.knows_dead_owners(rescue_after) => dead,
            _ => Vec::new(),
        })
    }

    /// Renews the entry of a worker.
    async fn renew_owner(
        &self,
        leases: &Leases,
        connection: &mut DedicatedConnection,
    ) -> Result<OwnerRenewal, ServiceError> {
        if !self.has_owner(leases) {
            return Ok(OwnerRenewal::Off);
        }
        let layout = &self.client.options().layout;
        let owners = layout.owners();
        let rescue_after = format!("{:.6}", layout.rescue_after.as_secs_f64());
        let most = MAX_DEAD_OWNERS.to_string();
        let expire = OWNERS_EXPIRE.as_secs().to_string();
        let arguments = [
            leases.owner().as_bytes(),
            rescue_after.as_bytes(),
            most.as_bytes(),
            expire.as_bytes(),
        ];
        let answer = connection
            .script(OWNER_OPERATION, &OWNER_RENEW, &[&owners], &arguments)
            .await;
        let reply = match answer {
            Ok(RedisReply::Nil) => return Ok(OwnerRenewal::MemoryFull),
            Ok(reply) => reply,
            Err(error) if !error.is_transient() && leases.refuse_owner() => {
                tracing::warn!(
                    "deliveries of dead workers are restored after the visibility timeout only: \
                     {error}"
                );
                return Ok(OwnerRenewal::Off);
            }
            Err(error) => return Err(error),
        };
        let mut replies = reply.list().into_iter();
        let mut dead = Vec::new();
        while let (Some(owner), Some(time)) = (replies.next(), replies.next()) {
            if let (Some(owner), Some(alive_until)) = (owner.text(), time.text()) {
                dead.push(DeadOwner { owner, alive_until });
            }
        }
        Ok(OwnerRenewal::Renewed(dead))
    }

    /// Returns whether a worker has an entry of its own.
    fn has_owner(&self, leases: &Leases) -> bool {
        let is_rescued = !self.client.options().layout.rescue_after.is_zero();
        is_rescued && !leases.is_owner_refused()
    }

    /// Returns the command that renews one delivery.
    pub(crate) fn renew_command(&self, tag: &str) -> Command {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        RENEW.by_text(&keys.each_ref().map(String::as_str), &[tag.as_bytes()])
    }

    /// Renews the deliveries in hand, and reports those that are not unacked any more.
    async fn renew_held(
        &self,
        leases: &Leases,
        connection: &mut DedicatedConnection,
    ) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        let keys = keys.each_ref().map(String::as_str);
        for chunk in leases.held().chunks(CHUNK_SIZE) {
            let tags: Vec<_> = chunk.iter().map(String::as_bytes).collect();
            let reply = connection.script(OPERATION, &RENEW, &keys, &tags).await?;
            let missing = reply.list().into_iter().filter_map(RedisReply::text);
            leases.report(missing.collect());
        }
        Ok(())
    }

    async fn renew_on(
        &self,
        leases: &Leases,
        connection: &mut Option<DedicatedConnection>,
        renews_held: bool,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.client.dedicated(OPERATION).await?),
        };
        self.renew(leases, connection, renews_held).await
    }

    /// Ends the ownership of a worker that closes its last consumer: what it still holds
    /// is restored by others at once.
    pub(crate) async fn end_ownership(&self, leases: &Leases) -> Result<(), ServiceError> {
        match leases.close_last() {
            Some(holds) if self.has_owner(leases) => self.leave(leases.owner(), holds).await,
            _ => Ok(()),
        }
    }
}

/// Renews the owner and the deliveries of a worker while it exists, on a connection of its
/// own, so that neither a full pool nor a long answer delays it.
async fn run(shared: Arc<Shared>, leases: Arc<Leases>, connection: DedicatedConnection) {
    let mut connection = Some(connection);
    let layout = &shared.client.options().layout;
    let interval = layout.renewal_interval();
    let mut held_renewed_at = env::instant();
    let mut suspects = Suspects::new();
    let mut following: Option<JoinHandle<()>> = None;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = leases.consumer_ended() => {}
            () = shared.client.closed() => return,
            _ = ticks.tick() => {}
        }
        if leases.is_abandoned() {
            return abandon(&shared, &leases).await;
        }
        if leases.is_closed() {
            continue;
        }
        let is_due = held_renewed_at.elapsed() + interval > layout.visibility_timeout / 3;
        let renews_held = is_due || !leases.are_current(layout.rescue_after);
        let started = env::instant();
        let listed = match shared.renew_on(&leases, &mut connection, renews_held).await {
            Ok(listed) => listed,
            Err(error) => {
                connection = None;
                tracing::warn!("{error}");
                continue;
            }
        };
        if renews_held {
            held_renewed_at = started;
        }
        let dead = confirm_dead(listed, &mut suspects);
        if following.as_ref().is_none_or(JoinHandle::is_finished) {
            following = Some(env::spawn(follow_up(
                Arc::clone(&shared),
                Arc::clone(&leases),
                dead,
            )));
        }
    }
}

/// Returns the owners that are listed with the same time for the third time in
/// succession. A step of the server's clock makes living owners look dead until they are
/// renewed.
fn confirm_dead(listed: Vec<DeadOwner>, suspects: &mut Suspects) -> Vec<DeadOwner> {
    let before = std::mem::take(suspects);
    let mut dead = Vec::new();
    for owner in listed {
        let times = match before.get(&owner.owner) {
            Some((alive_until, times)) if *alive_until == owner.alive_until => times + 1,
            _ => 1,
        };
        suspects.insert(owner.owner.clone(), (owner.alive_until.clone(), times));
        if times >= CONFIRMATIONS {
            dead.push(owner);
        }
    }
    dead
}

/// Lets others restore what a worker held or had deferred that ended without closing its
/// consumers.
async fn abandon(shared: &Shared, leases: &Arc<Leases>) {
    shared.leases.remove(leases);
    shared.delayed.forget(leases.owner());
    let owner = leases.owner();
    shared.unconfirmed.remove(|fetch| fetch.is_of(owner));
    if leases.is_closed() || !shared.has_owner(leases) {
        return;
    }
    if let Err(error) = shared.leave(leases.owner(), true).await {
        tracing::warn!("{error}");
    }
}

/// Restores the deliveries of dead owners and looks unconfirmed fetches up, beside the
/// renewals.
async fn follow_up(shared: Arc<Shared>, leases: Arc<Leases>, dead: Vec<DeadOwner>) {
    for owner in &dead {
        shared.rescue(owner).await;
    }
    // The next consumer looks them up when it starts.
    if !leases.is_open() || shared.unconfirmed.of(leases.owner()).is_empty() {
        return;
    }
    if let Err(error) = shared.recover_unconfirmed(OPERATION, &leases).await {
        tracing::warn!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_dead_when_it_is_listed_three_times_with_the_same_time() {
        let owner = |owner: &str, alive_until: &str| DeadOwner {
            owner: owner.to_owned(),
            alive_until: alive_until.to_owned(),
        };
        let mut suspects = Suspects::new();
        let mut confirm = |listed: &[DeadOwner]| confirm_dead(listed.to_vec(), &mut suspects);
        assert!(confirm(&[owner("a", "1"), owner("b", "1")]).is_empty());
        assert!(confirm(&[owner("a", "1"), owner("b", "1")]).is_empty());
        let listed = [owner("a", "2"), owner("b", "1"), owner("c", "1")];
        assert_eq!(confirm(&listed), [owner("b", "1")]);
        assert!(confirm(&[owner("a", "2")]).is_empty());
        assert!(confirm(&[owner("b", "1")]).is_empty());
    }
}
