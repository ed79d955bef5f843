//! Revocations: exchange with peers, durable copies, REVOKED results, state file.

use std::sync::Arc;
use std::time::Instant;

use celery_protocol::ControlReply;
use futures_util::FutureExt;

use crate::boundary::ResultBackend;
use crate::revocation::store_revocations;
use crate::worker::driver::command::argument;
use crate::worker::driver::{Driver, Finished};
use crate::worker::io::state_file::SavedState;

impl Driver {
    /// Adds the revocations and logical clocks of the peers.
    pub(crate) fn merge_peer_state(&mut self, replies: Vec<ControlReply>) {
        for reply in replies {
            if reply.node == self.hostname() {
                continue;
            }
            tracing::info!("synchronised with {}", reply.node);
            self.monitor.logical_clock.adjust(reply.clock);
            let fields = reply.value.as_map();
            if let Some(clock) = fields.and_then(|map| map.get("clock")?.as_u64()) {
                self.monitor.logical_clock.adjust(clock);
            }
            let revoked = fields.and_then(|map| map.get("revoked"));
            for id in argument::texts(revoked) {
                self.revocations.add(&id, self.now.wall);
            }
        }
    }

    /// Queues ids whose results are to be set to REVOKED, on backends that any
    /// process can read.
    pub(crate) fn queue_revoked_results(&mut self, ids: impl Iterator<Item = String>) {
        let shared = |backend: &Arc<dyn ResultBackend>| backend.capabilities().shared;
        if !self.executor.context.backend.as_ref().is_some_and(shared) {
            return;
        }
        self.revocations.queue_writes(ids);
    }

    /// Stores revocations for workers that start later, with
    /// `worker_durable_revokes`.
    pub(crate) fn store_revocations(&mut self, ids: &[String]) {
        let (Some(lifetime), Some(store)) = (
            self.settings.durable_revokes,
            self.executor.context.store.clone(),
        ) else {
            return;
        };
        let (ids, deadline) = (ids.to_vec(), self.executor.deadline);
        self.futures.push(Box::pin(async move {
            let storing = store_revocations(&*store, &ids, lifetime);
            match tokio::time::timeout(deadline, storing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("cannot store revocations durably: {error}"),
                Err(_) => tracing::error!(
                    "cannot store revocations durably: no answer within {deadline:?}"
                ),
            }
            Finished::Nothing
        }));
    }

    /// Sets the results of the next batch of ids to REVOKED.
    pub(crate) fn write_revocations(&mut self) {
        let Some(ids) = self.revocations.next_write() else {
            return;
        };
        let written = self.executor.store_revoked(ids, self.now.wall);
        self.futures
            .push(Box::pin(written.map(|()| Finished::RevocationsWritten)));
    }

    pub(crate) fn load_state(&mut self) {
        let Some(path) = &self.settings.state_file else {
            return;
        };
        match SavedState::load(path) {
            Ok(state) => {
                self.monitor.logical_clock.adjust(state.clock);
                self.revocations.restore(&state.revoked);
            }
            Err(error) => tracing::error!(
                "cannot read the state file {}, earlier revocations are unknown: {error}",
                path.display()
            ),
        }
    }

    /// Returns when the state file is to be written, if it is out of date.
    pub(crate) fn next_save(&self) -> Option<Instant> {
        self.settings.state_file.as_ref()?;
        self.revocations.next_save()
    }

    pub(crate) fn save_state(&mut self) {
        self.revocations.saved(self.now.instant);
        let Some(path) = &self.settings.state_file else {
            return;
        };
        let state = SavedState {
            revoked: self.revocations.timed(),
            clock: self.monitor.logical_clock.value(),
        };
        if let Err(error) = state.save(path) {
            tracing::error!("cannot write the state file {}: {error}", path.display());
        }
    }
}
