//! Renewing what this process holds on the server; see [`lease`](crate::lease).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery_runtime::{ServiceError, env};
use tokio::task::JoinHandle;

use crate::client::{Command, DedicatedConnection, Operation, RedisReply, Script};
use crate::lease::OpenConsumer;
use crate::rescue::DeadOwner;
use crate::shared::Shared;

static RENEW: LazyLock<Script> = LazyLock::new(|| script!("renew.lua"));
static OWNER_RENEW: LazyLock<Script> = LazyLock::new(|| script!("owner_renew.lua"));

const OPERATION: Operation<'static> = Operation::new("renew", "deliveries");
const OWNER_OPERATION: Operation<'static> = Operation::new("renew", "the owner of deliveries");

/// The number of tags in one request.
const CHUNK_SIZE: usize = 1000;

/// The number of dead owners that one renewal lists.
const MAX_DEAD_OWNERS: usize = 10;

/// The time after which the owners are forgotten if no process renews any.
const OWNERS_EXPIRE: Duration = Duration::from_secs(24 * 3600);

impl Shared {
    /// Renews what this process holds and opens a consumer, which keeps it renewed.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub(crate) async fn open_consumer(self: &Arc<Self>) -> Result<OpenConsumer, ServiceError> {
        self.leases.begin();
        let mut connection = self.client.dedicated(OPERATION).await?;
        self.renew(&mut connection, true).await?;
        let (consumer, starts_renewal) = self.leases.open();
        if starts_renewal {
            env::spawn(run(Arc::clone(self), connection));
        }
        Ok(consumer)
    }

    /// Renews the owner and, with `renews_held`, the deliveries in hand, which are current
    /// only after both. Returns the owners that are dead.
    async fn renew(
        &self,
        connection: &mut DedicatedConnection,
        renews_held: bool,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let rescue_after = self.client.options().layout.rescue_after;
        let dead = self.renew_owner(connection).await?;
        if renews_held {
            self.renew_held(connection).await?;
        }
        self.leases.owner_renewed(rescue_after);
        Ok(match self.leases.knows_dead_owners(rescue_after) {
            true => dead,
            false => Vec::new(),
        })
    }

    /// Renews the entry of this process, and returns the owners that are not renewed.
    async fn renew_owner(
        &self,
        connection: &mut DedicatedConnection,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let layout = &self.client.options().layout;
        if !self.has_owner() {
            return Ok(Vec::new());
        }
        let owners = layout.owners();
        let rescue_after = format!("{:.6}", layout.rescue_after.as_secs_f64());
        let most = MAX_DEAD_OWNERS.to_string();
        let expire = OWNERS_EXPIRE.as_secs().to_string();
        let arguments = [
            self.leases.owner().as_bytes(),
            rescue_after.as_bytes(),
            most.as_bytes(),
            expire.as_bytes(),
        ];
        let answer = connection
            .script(OWNER_OPERATION, &OWNER_RENEW, &[&owners], &arguments)
            .await;
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                self.leases.refuse_owner();
                tracing::warn!(
                    "deliveries of dead workers are restored after the visibility timeout only: \
                     {error}"
                );
                return Ok(Vec::new());
            }
        };
        let mut replies = reply.list().into_iter();
        let mut dead = Vec::new();
        while let (Some(owner), Some(time)) = (replies.next(), replies.next()) {
            if let (Some(owner), Some(renewed_at)) = (owner.text(), time.text()) {
                dead.push(DeadOwner { owner, renewed_at });
            }
        }
        Ok(dead)
    }

    /// Returns the command that renews one delivery.
    pub(crate) fn renew_command(&self, tag: &str) -> Command {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        RENEW.by_text(&keys.each_ref().map(String::as_str), &[tag.as_bytes()])
    }

    /// Renews the deliveries in hand, and reports those that are not unacked any more.
    async fn renew_held(&self, connection: &mut DedicatedConnection) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        let keys = keys.each_ref().map(String::as_str);
        for chunk in self.leases.held().chunks(CHUNK_SIZE) {
            let tags: Vec<_> = chunk.iter().map(String::as_bytes).collect();
            let reply = connection.script(OPERATION, &RENEW, &keys, &tags).await?;
            let missing = reply.list().into_iter().filter_map(RedisReply::text);
            self.leases.report(missing.collect());
        }
        Ok(())
    }
}

/// Renews the owner and the deliveries in hand while consumers are open, on a connection
/// of its own, so that neither a full pool nor a long answer delays it.
async fn run(shared: Arc<Shared>, connection: DedicatedConnection) {
    let mut connection = Some(connection);
    let interval = shared.client.options().layout.renewal_interval();
    let held_interval = shared.client.options().layout.visibility_timeout / 3;
    let mut held_renewed_at = env::instant();
    let mut following: Option<JoinHandle<()>> = None;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shared.leases.stopped() => {}
            () = shared.client.closed() => {}
            _ = ticks.tick() => {}
        }
        if shared.client.is_closed() || shared.leases.ends_renewal() {
            return;
        }
        let is_current = shared
            .leases
            .are_current(shared.client.options().layout.rescue_after);
        let renews_held = !is_current || held_renewed_at.elapsed() + interval > held_interval;
        let started = env::instant();
        let dead = match shared.renew_on(&mut connection, renews_held).await {
            Ok(dead) => dead,
            Err(error) => {
                connection = None;
                tracing::warn!("{error}");
                continue;
            }
        };
        if renews_held {
            held_renewed_at = started;
        }
        if following.as_ref().is_none_or(JoinHandle::is_finished) {
            following = Some(env::spawn(follow_up(Arc::clone(&shared), dead)));
        }
    }
}

/// Restores the deliveries of dead owners and looks unconfirmed fetches up, beside the
/// renewals.
async fn follow_up(shared: Arc<Shared>, dead: Vec<DeadOwner>) {
    for owner in &dead {
        shared.rescue(owner).await;
    }
    let queues = shared.unconfirmed.queues();
    if queues.is_empty() {
        return;
    }
    if let Err(error) = shared.recover_unconfirmed(OPERATION, &queues).await {
        tracing::warn!("{error}");
    }
}

impl Shared {
    async fn renew_on(
        &self,
        connection: &mut Option<DedicatedConnection>,
        renews_held: bool,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.client.dedicated(OPERATION).await?),
        };
        self.renew(connection, renews_held).await
    }

    /// Ends the ownership of a process that stops consuming: what it still holds is
    /// restored by others at once.
    pub(crate) async fn end_ownership(&self) -> Result<(), ServiceError> {
        match self.leases.close_last() {
            Some(holds) if self.has_owner() => self.leave(self.leases.owner(), holds).await,
            _ => Ok(()),
        }
    }

    /// Returns whether this process has an entry of its own.
    fn has_owner(&self) -> bool {
        let is_rescued = !self.client.options().layout.rescue_after.is_zero();
        is_rescued && !self.leases.is_owner_refused()
    }
}
