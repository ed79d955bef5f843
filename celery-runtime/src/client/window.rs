//! The back-pressure of a client: the number of its messages in flight, per target.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::boundary::{ServiceError, ServiceErrorKind};
use crate::env;

/// The exchange and routing key of a message.
type Target<'a> = (&'a str, &'a str);

/// The number of known targets from which the unused ones are forgotten.
const MANY_TARGETS: usize = 1_024;

/// Lets a limited number of messages for one target in flight. A queue that accepts no
/// messages holds up only what is sent to it.
#[derive(Debug)]
pub(super) struct SendWindow {
    /// The maximum number of messages in flight for one target.
    size: usize,
    /// The maximum time that a call waits for room.
    max_wait: Duration,
    hasher: RandomState,
    /// The room of each target, by the hash of exchange and routing key.
    targets: Mutex<HashMap<u64, Arc<Semaphore>>>,
    /// The number of calls that wait for room.
    waiting: AtomicUsize,
}

/// The room that the messages of a call take until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl SendWindow {
    pub(super) fn new(size: usize, max_wait: Duration) -> Self {
        Self {
            size,
            max_wait,
            hasher: RandomState::new(),
            targets: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for room for one message for each of these targets. More messages for one target than the window
    /// has room for take all of it.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](ServiceErrorKind::TimedOut) if there is no room within the maximum
    /// time. Nothing was sent then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn enter<'a>(
        &self,
        targets: impl Iterator<Item = Target<'a>>,
    ) -> Result<InFlight, ServiceError> {
        let mut counts: Vec<(u64, usize, Target<'a>)> = Vec::with_capacity(1);
        for target in targets {
            let hash = self.hasher.hash_one(target);
            match counts.iter_mut().find(|(known, ..)| *known == hash) {
                Some((_, count, _)) => *count += 1,
                None => counts.push((hash, 1, target)),
            }
        }
        counts.sort_unstable_by_key(|(hash, ..)| *hash);
        let until = env::instant() + self.max_wait;
        let mut permits = Vec::with_capacity(counts.len());
        // A call waits for one target at a time and takes no room of others meanwhile.
        let mut awaited = None;
        while permits.len() < counts.len() {
            permits.clear();
            let mut full = None;
            for (index, (hash, count, _)) in counts.iter().enumerate() {
                let permit = match awaited.take_if(|(awaited, _)| *awaited == index) {
                    Some((_, permit)) => Ok(permit),
                    None => self.room(*hash).try_acquire_many_owned(self.places(*count)),
                };
                match permit {
                    Ok(permit) => permits.push(permit),
                    Err(_) => {
                        full = Some(index);
                        break;
                    }
                }
            }
            if let Some(index) = full {
                permits.clear();
                drop(awaited.take());
                let (hash, count, target) = counts[index];
                let permit = self.acquire(hash, count, target, until).await?;
                awaited = Some((index, permit));
            }
        }
        Ok(InFlight { _permits: permits })
    }

    /// Returns the room that so many messages for one target take.
    fn places(&self, count: usize) -> u32 {
        u32::try_from(count.min(self.size)).unwrap_or(u32::MAX)
    }

    async fn acquire(
        &self,
        hash: u64,
        count: usize,
        target: Target<'_>,
        until: Instant,
    ) -> Result<OwnedSemaphorePermit, ServiceError> {
        let waiting = WaitingCall::count(&self.waiting);
        let permit = self.room(hash).acquire_many_owned(self.places(count));
        match tokio::time::timeout_at(until, permit).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(self.no_room(target, waiting.0.load(Ordering::Relaxed))),
        }
    }

    fn no_room(&self, target: Target<'_>, waiting: usize) -> ServiceError {
        let cause = format!(
            "the broker has not accepted {} earlier messages; {waiting} sends waited, this one \
             for {:?}",
            self.size, self.max_wait
        );
        let object = match target {
            ("", queue) => format!("queue {queue}"),
            (exchange, _) => format!("exchange {exchange}"),
        };
        ServiceError::new(ServiceErrorKind::TimedOut, "publish to", object, cause).not_sent()
    }

    /// Returns the room of the target with this hash.
    fn room(&self, target: u64) -> Arc<Semaphore> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() >= MANY_TARGETS && !targets.contains_key(&target) {
            targets.retain(|_, room| {
                Arc::strong_count(room) > 1 || room.available_permits() < self.size
            });
        }
        let room = targets
            .entry(target)
            .or_insert_with(|| Arc::new(Semaphore::new(self.size)));
        Arc::clone(room)
    }
}

/// Counts a call as waiting until it is dropped.
struct WaitingCall<'a>(&'a AtomicUsize);

impl<'a> WaitingCall<'a> {
    fn count(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt;

    use super::*;

    fn messages(queue: &str, count: usize) -> impl Iterator<Item = Target<'_>> {
        std::iter::repeat_n(("", queue), count)
    }

    #[tokio::test(start_paused = true)]
    async fn full_target_holds_up_no_other_target() {
        let window = SendWindow::new(3, Duration::from_secs(60));
        let held = window.enter(messages("slow", 3)).await.unwrap();
        assert!(window.enter(messages("slow", 1)).now_or_never().is_none());
        let other = window.enter(messages("other", 3));
        other.now_or_never().unwrap().unwrap();
        drop(held);
        let entered = window.enter(messages("slow", 1));
        entered.now_or_never().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn wait_without_room_ends_with_the_number_of_waiting_sends() {
        let window = SendWindow::new(2, Duration::from_secs(60));
        let _held = window.enter(messages("q", 2)).await.unwrap();
        let calls = (0..5).map(|_| window.enter(messages("q", 1)));
        let outcomes = futures_util::future::join_all(calls).await;
        let error = outcomes[0].as_ref().unwrap_err();
        assert!(!error.is_in_doubt() && error.is_transient(), "{error}");
        assert_eq!(
            error.to_string(),
            "cannot publish to queue q: the broker has not accepted 2 earlier messages; 5 sends \
             waited, this one for 60s"
        );
        assert_eq!(window.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_waits_for_full_targets_takes_no_room_of_others() {
        let window = SendWindow::new(2, Duration::from_secs(60));
        let full = ["a", "b", "c"];
        let mut held = Vec::new();
        for queue in full {
            held.push(window.enter(messages(queue, 2)).await.unwrap());
        }
        let targets = || full.into_iter().chain(["free"]).map(|queue| ("", queue));
        let began = Instant::now();
        let call = window.enter(targets());
        let others = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let free = window.enter(messages("free", 2)).now_or_never();
            assert!(free.unwrap().is_ok());
        };
        let (call, ()) = tokio::join!(call, others);
        call.unwrap_err();
        assert_eq!(began.elapsed(), Duration::from_secs(60));
        held.clear();
        window.enter(targets()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn call_with_more_messages_than_room_takes_all_of_it() {
        let window = SendWindow::new(2, Duration::from_secs(60));
        let large = window.enter(messages("q", 5)).await.unwrap();
        assert!(window.enter(messages("q", 1)).now_or_never().is_none());
        drop(large);
        window.enter(messages("q", 1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn unused_targets_are_forgotten() {
        let window = SendWindow::new(2, Duration::from_secs(60));
        let _held = window.enter(messages("held", 1)).await.unwrap();
        for number in 0..3 * MANY_TARGETS {
            window
                .enter(messages(&number.to_string(), 1))
                .await
                .unwrap();
        }
        assert!(window.targets.lock().unwrap().len() <= MANY_TARGETS);
        assert!(window.enter(messages("held", 2)).now_or_never().is_none());
    }
}
