//! The progress of a shutdown: [`Shutdown`]. Pure.

use std::time::{Duration, Instant};

use crate::boundary::ServiceError;
use crate::worker::delivery::event::Stop;

/// Which stage of a shutdown a worker is in, and when the next one begins.
#[derive(Debug)]
pub(crate) struct Shutdown {
    options: ShutdownOptions,
    /// The stage, once a shutdown was requested.
    stage: Option<Stop>,
    /// When a soft shutdown becomes a cold one.
    soft_until: Option<Instant>,
    /// When the worker gives up waiting for effects; set while no task runs.
    give_up_at: Option<Instant>,
    /// When the worker ends, once it has given up.
    end_at: Option<Instant>,
    /// The error that caused the shutdown.
    error: Option<ServiceError>,
}

/// How long the stages of a shutdown last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShutdownOptions {
    /// How long a shutdown waits for results and acknowledgements after the last task
    /// has ended.
    pub(crate) grace: Duration,
    /// How long it then waits until messages are restored whose acknowledgement is in
    /// doubt.
    pub(crate) restore: Duration,
    /// `worker_soft_shutdown_timeout`: how long a cold shutdown waits for running
    /// tasks; zero for no soft shutdown.
    pub(crate) soft_timeout: Duration,
    /// `worker_enable_soft_shutdown_on_idle`: a soft shutdown takes place, and lasts
    /// for its time, also if no task runs.
    pub(crate) soft_on_idle: bool,
}

impl Shutdown {
    pub(crate) fn new(options: ShutdownOptions) -> Self {
        Self {
            options,
            stage: None,
            soft_until: None,
            give_up_at: None,
            end_at: None,
            error: None,
        }
    }

    /// Returns the stage, once a shutdown was requested.
    pub(crate) fn stage(&self) -> Option<Stop> {
        self.stage
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.stage.is_some()
    }

    /// Returns how long the broker may take to return deferred deliveries: as long as for
    /// results, unless it has not answered for that time already.
    pub(crate) fn time_to_close(&self) -> Duration {
        match self.end_at {
            None => self.options.grace,
            Some(_) => Duration::ZERO,
        }
    }

    /// Returns the error that caused the shutdown.
    pub(crate) fn error(&self) -> Option<&ServiceError> {
        self.error.as_ref()
    }

    /// Records the error that causes the shutdown.
    pub(crate) fn fail(&mut self, error: ServiceError) {
        self.error = Some(error);
    }

    /// Begins a stage, and returns it: the first cold shutdown is a soft one if
    /// `worker_soft_shutdown_timeout` is set.
    pub(crate) fn request(&mut self, stop: Stop, is_busy: bool, now: Instant) -> Stop {
        let stage = self.stage_of(stop, is_busy);
        match stage {
            Stop::Soft => self.soft_until = Some(now + self.options.soft_timeout),
            Stop::Cold => self.soft_until = None,
            Stop::Warm => {}
        }
        self.stage = Some(stage);
        stage
    }

    fn stage_of(&self, stop: Stop, is_busy: bool) -> Stop {
        let has_soft_stage = !self.options.soft_timeout.is_zero();
        let has_work = is_busy || self.options.soft_on_idle;
        let is_new = self.soft_until.is_none() && self.stage != Some(Stop::Soft);
        if stop == Stop::Cold && has_soft_stage && has_work && is_new {
            Stop::Soft
        } else {
            stop
        }
    }

    /// Ends a soft shutdown whose time has passed. The cold one has to be requested
    /// then.
    pub(crate) fn end_soft_stage(&mut self, now: Instant) -> bool {
        self.soft_until.take_if(|until| *until <= now).is_some()
    }

    /// Starts the grace period of a shutdown while no task runs. A task that starts
    /// after that, because its acknowledgement was in doubt, ends the period.
    pub(crate) fn set_idle(&mut self, is_idle: bool, now: Instant) {
        if !is_idle {
            self.give_up_at = None;
        } else if self.is_requested() {
            self.give_up_at.get_or_insert(now + self.options.grace);
        }
    }

    /// Gives up waiting for effects if the grace period is over. Returns true once.
    pub(crate) fn give_up(&mut self, now: Instant) -> bool {
        let is_over = self.give_up_at.is_some_and(|time| time <= now);
        let gives_up = is_over && self.end_at.is_none();
        if gives_up {
            self.end_at = Some(now + self.options.restore);
        }
        gives_up
    }

    /// Returns when the next stage begins.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let last = self.end_at.or(self.give_up_at);
        last.into_iter().chain(self.soft_until).min()
    }

    /// Returns whether the worker ends. `is_settled` says that no deliveries are left,
    /// `is_restoring` that messages are being restored.
    pub(crate) fn is_over(&self, is_settled: bool, is_restoring: bool, now: Instant) -> bool {
        if self.soft_until.is_some() && self.options.soft_on_idle {
            return false;
        }
        let is_given_up = self.end_at.is_some_and(|time| time <= now || !is_restoring);
        self.is_requested() && (is_settled || is_given_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const RESTORE: Duration = Duration::from_secs(2);
    const SOFT: Duration = Duration::from_secs(10);

    fn shutdown(soft_timeout: Duration, soft_on_idle: bool) -> Shutdown {
        Shutdown::new(ShutdownOptions {
            grace: GRACE,
            soft_timeout,
            restore: RESTORE,
            soft_on_idle,
        })
    }

    #[test]
    fn shutdown_ends_when_settled_or_after_grace() {
        let now = Instant::now();
        let mut shutdown = shutdown(Duration::ZERO, false);
        shutdown.set_idle(true, now);
        assert!(!shutdown.give_up(now + GRACE));
        assert!(!shutdown.is_over(true, false, now + GRACE));
        assert_eq!(shutdown.request(Stop::Warm, true, now), Stop::Warm);
        assert!(shutdown.is_over(true, false, now));
        shutdown.set_idle(true, now);
        shutdown.set_idle(true, now + GRACE);
        assert_eq!(shutdown.deadline(), Some(now + GRACE));
        assert!(!shutdown.give_up(now + GRACE / 2));
        assert!(!shutdown.is_over(false, false, now + GRACE));
        assert!(shutdown.give_up(now + GRACE));
        assert!(shutdown.is_over(false, false, now + GRACE));
    }

    #[test]
    fn given_up_shutdown_waits_for_restored_messages() {
        let now = Instant::now();
        let mut shutdown = shutdown(Duration::ZERO, false);
        shutdown.request(Stop::Warm, false, now);
        shutdown.set_idle(true, now);
        assert!(shutdown.give_up(now + GRACE));
        assert!(!shutdown.give_up(now + GRACE));
        let end = now + GRACE + RESTORE;
        assert_eq!(shutdown.deadline(), Some(end));
        assert!(!shutdown.is_over(false, true, now + GRACE));
        assert!(shutdown.is_over(false, true, end));
    }

    #[test]
    fn task_that_starts_during_shutdown_ends_the_grace() {
        let now = Instant::now();
        let mut shutdown = shutdown(Duration::ZERO, false);
        shutdown.request(Stop::Warm, false, now);
        shutdown.set_idle(true, now);
        shutdown.set_idle(false, now + GRACE / 2);
        assert_eq!(shutdown.deadline(), None);
        assert!(!shutdown.give_up(now + GRACE));
        shutdown.set_idle(true, now + GRACE);
        assert_eq!(shutdown.deadline(), Some(now + GRACE * 2));
    }

    #[test]
    fn cold_shutdown_is_soft_first_while_tasks_run() {
        let now = Instant::now();
        let mut shutdown = shutdown(SOFT, false);
        assert_eq!(shutdown.request(Stop::Warm, true, now), Stop::Warm);
        assert_eq!(shutdown.request(Stop::Cold, true, now), Stop::Soft);
        assert_eq!(shutdown.deadline(), Some(now + SOFT));
        assert!(!shutdown.end_soft_stage(now));
        assert!(shutdown.end_soft_stage(now + SOFT));
        assert!(!shutdown.end_soft_stage(now + SOFT));
        assert_eq!(shutdown.request(Stop::Cold, true, now), Stop::Cold);
    }

    #[test]
    fn second_cold_shutdown_ends_the_soft_one() {
        let now = Instant::now();
        let mut shutdown = shutdown(SOFT, false);
        assert_eq!(shutdown.request(Stop::Cold, true, now), Stop::Soft);
        assert_eq!(shutdown.request(Stop::Cold, true, now), Stop::Cold);
        assert_eq!(shutdown.deadline(), None);
    }

    #[test]
    fn idle_worker_shuts_down_softly_only_if_set() {
        let now = Instant::now();
        assert_eq!(
            shutdown(SOFT, false).request(Stop::Cold, false, now),
            Stop::Cold
        );
        let mut waiting = shutdown(SOFT, true);
        assert_eq!(waiting.request(Stop::Cold, false, now), Stop::Soft);
        assert!(!waiting.is_over(true, false, now));
        assert!(waiting.end_soft_stage(now + SOFT));
        assert_eq!(waiting.request(Stop::Cold, false, now), Stop::Cold);
        assert!(waiting.is_over(true, false, now));
    }
}
