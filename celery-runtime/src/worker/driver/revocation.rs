//! What was revoked, and who is to know of it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use celery_protocol::ControlReply;
use futures_util::FutureExt;

use crate::boundary::ResultBackend;
use crate::worker::driver::command::argument;
use crate::worker::driver::{Driver, Finished, MARKED_TOGETHER};
use crate::worker::io::state_file::SavedState;

impl Driver {
    /// What the peers know.
    pub(crate) fn learn(&mut self, replies: Vec<ControlReply>) {
        for reply in replies {
            if reply.node == self.hostname() {
                continue;
            }
            tracing::info!("synchronised with {}", reply.node);
            self.logical_clock.adjust(reply.clock);
            let fields = reply.value.as_map();
            if let Some(clock) = fields.and_then(|map| map.get("clock")?.as_u64()) {
                self.logical_clock.adjust(clock);
            }
            let revoked = fields.and_then(|map| map.get("revoked"));
            for id in argument::texts(revoked) {
                self.revoked.add(&id, self.now.wall);
                self.unsaved = true;
            }
        }
    }

    /// Lets the results of tasks that will not run say so.
    pub(crate) fn mark_revoked(&mut self, ids: impl Iterator<Item = String>) {
        let shared = |backend: &Arc<dyn ResultBackend>| backend.capabilities().shared;
        if !self.executor.services.backend.as_ref().is_some_and(shared) {
            return;
        }
        self.marks.extend(ids);
        let excess = self.marks.len().saturating_sub(self.settings.revokes_max);
        if excess > 0 {
            tracing::warn!("the results of {excess} revoked tasks will not say so");
            self.marks.drain(..excess);
        }
    }

    /// Lets those who are away know, where that is set up.
    pub(crate) fn remember_revoked(&mut self, ids: &[String]) {
        let (Some(remembered), Some(store)) = (
            self.settings.durable_revokes,
            self.executor.services.store.clone(),
        ) else {
            return;
        };
        let (ids, deadline) = (ids.to_vec(), self.executor.deadline);
        self.futures.push(Box::pin(async move {
            let remembering = crate::revocation::store_revocations(&*store, &ids, remembered);
            match tokio::time::timeout(deadline, remembering).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("revoked tasks are not remembered: {error}"),
                Err(_) => tracing::error!("revoked tasks are not remembered: no answer"),
            }
            Finished::Nothing
        }));
    }

    pub(crate) fn send_marks(&mut self) {
        if self.marking || self.marks.is_empty() {
            return;
        }
        self.marking = true;
        let together = self.marks.len().min(MARKED_TOGETHER);
        let ids: Vec<_> = self.marks.drain(..together).collect();
        let marked = self.executor.mark_revoked(ids, self.now.wall);
        self.futures
            .push(Box::pin(marked.map(|()| Finished::Marked)));
    }

    pub(crate) fn load_state(&mut self) {
        let Some(path) = &self.settings.state_file else {
            return;
        };
        match SavedState::load(path) {
            Ok(state) => {
                self.logical_clock.adjust(state.clock);
                for (id, time) in state.revoked {
                    let since = Duration::try_from_secs_f64(time).unwrap_or_default();
                    self.revoked.add(&id, UNIX_EPOCH + since);
                }
            }
            Err(error) => tracing::error!(
                "cannot read the state file {}, so what was revoked is not known: {error}",
                path.display()
            ),
        }
    }

    pub(crate) fn save_state(&mut self) {
        self.unsaved = false;
        self.saved_at = self.now.instant;
        let Some(path) = &self.settings.state_file else {
            return;
        };
        let state = SavedState {
            revoked: self.revoked.timed(),
            clock: self.logical_clock.value(),
        };
        if let Err(error) = state.save(path) {
            tracing::error!("cannot write the state file {}: {error}", path.display());
        }
    }
}
