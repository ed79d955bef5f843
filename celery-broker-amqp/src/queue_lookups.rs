//! Queues that are looked up or declared before the first message for them.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use celery_runtime::ServiceError;
use tokio::time::Instant;

use crate::sync::lock;

/// The look-ups in flight, by the name of the queue. Concurrent senders share one.
#[derive(Debug, Default)]
pub(crate) struct QueueLookups {
    lookups: Mutex<HashMap<String, Arc<Lookup>>>,
}

#[derive(Debug, Default)]
struct Lookup {
    /// When the last attempt failed, and why. Locked during an attempt.
    last_failure: tokio::sync::Mutex<Option<(Instant, ServiceError)>>,
}

impl QueueLookups {
    /// Runs `look_up` unless another call does, and then waits for that one. `look_up`
    /// is called after each wait, and returns quickly if the queue is known by then.
    ///
    /// # Errors
    ///
    /// The error of this look-up, or of the one that this call has waited for.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call that waits runs its own `look_up`.
    pub(crate) async fn run<T>(
        &self,
        queue: &str,
        look_up: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let requested_at = Instant::now();
        let lookup = Arc::clone(lock(&self.lookups).entry(queue.to_owned()).or_default());
        let outcome = {
            let mut last_failure = lookup.last_failure.lock().await;
            match &*last_failure {
                Some((failed_at, error)) if *failed_at > requested_at => Err(error.clone()),
                _ => {
                    let outcome = look_up.await;
                    if let Err(error) = &outcome {
                        *last_failure = Some((Instant::now(), error.clone()));
                    }
                    outcome
                }
            }
        };
        let mut lookups = lock(&self.lookups);
        // This call and the map hold the last references.
        if Arc::strong_count(&lookup) <= 2 {
            lookups.remove(queue);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use celery_runtime::ServiceErrorKind;
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn concurrent_calls_share_the_failure_of_one_lookup() {
        let (lookups, attempts) = (QueueLookups::default(), AtomicUsize::new(0));
        let calls = (0..100).map(|_| {
            lookups.run("q", async {
                attempts.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                Err::<(), _>(ServiceError::new(
                    ServiceErrorKind::Denied,
                    "declare",
                    "queue q",
                    "refused",
                ))
            })
        });
        let outcomes = join_all(calls).await;
        assert!(outcomes.iter().all(Result::is_err));
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
        assert!(lock(&lookups.lookups).is_empty());
        let later = lookups.run("q", async { Ok(1) }).await;
        assert_eq!(later.unwrap(), 1);
    }
}
