//! Faults of a proxy that affect single requests, and the speed of its answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::lock;

/// The bytes that are forwarded at once by default.
const CHUNK_SIZE: usize = 64 * 1024;

/// The number of parts into which a throttled second is split.
const PARTS_PER_SECOND: usize = 20;

/// What happens to a request of [`Proxy::on_request`](super::Proxy::on_request), or to its answer.
///
/// The proxy does not know where requests and answers end: the fault affects the connection from
/// the request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The request waits in the proxy until [`release`](InjectedFault::release), and then arrives
    /// at the server, even if the client has closed its connection meanwhile.
    HoldRequest,
    /// The answer waits in the proxy for this time, or until [`release`](InjectedFault::release).
    DelayAnswer(Duration),
    /// The client gets neither this answer nor a later one on its connection, which stays open.
    SwallowAnswer,
    /// The connection is closed when the server has answered; the client gets no answer.
    Cut,
}

/// A fault for one request.
#[derive(Debug, Clone)]
pub struct InjectedFault {
    injected: Arc<Injected>,
}

impl InjectedFault {
    /// Returns whether the request has arrived at the proxy.
    #[must_use]
    pub fn has_request(&self) -> bool {
        *lock(&self.injected.progress) != Progress::Armed
    }

    /// Forwards what the fault holds back, also where the request arrives later.
    pub fn release(&self) {
        self.injected.release();
    }
}

#[derive(Debug)]
pub(super) struct Injected {
    pub(super) fault: Fault,
    pattern: Vec<u8>,
    progress: Mutex<Progress>,
    released: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Armed,
    Requested,
    Released,
}

impl Injected {
    /// Waits for the release, at most for `limit`.
    pub(super) fn wait(&self, limit: Duration) {
        let waits = |progress: &mut Progress| *progress != Progress::Released;
        let progress = lock(&self.progress);
        drop(self.released.wait_timeout_while(progress, limit, waits));
    }

    fn release(&self) {
        *lock(&self.progress) = Progress::Released;
        self.released.notify_all();
    }

    /// Returns whether the pattern ends within the last `new` bytes.
    fn matches(&self, bytes: &[u8], new: usize) -> bool {
        let from = bytes.len().saturating_sub(new + self.pattern.len() - 1);
        let mut windows = bytes[from..].windows(self.pattern.len());
        windows.any(|window| window == self.pattern)
    }
}

/// The faults of a proxy, shared by its connections.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Bytes per second towards each client; 0 for no limit.
    rate: AtomicUsize,
    injected: Mutex<Vec<Arc<Injected>>>,
}

impl Faults {
    pub(super) fn inject(&self, pattern: &[u8], fault: Fault) -> InjectedFault {
        assert!(
            !pattern.is_empty(),
            "every request contains the empty pattern"
        );
        let injected = Arc::new(Injected {
            fault,
            pattern: pattern.to_vec(),
            progress: Mutex::new(Progress::Armed),
            released: Condvar::new(),
        });
        lock(&self.injected).push(Arc::clone(&injected));
        InjectedFault { injected }
    }

    /// Returns the first waiting fault for a request: `bytes` are the last ones of a connection,
    /// of which `new` were not searched before.
    pub(super) fn take(&self, bytes: &[u8], new: usize) -> Option<Arc<Injected>> {
        lock(&self.injected).iter().find_map(|injected| {
            let mut progress = lock(&injected.progress);
            let is_taken = *progress == Progress::Armed && injected.matches(bytes, new);
            is_taken.then(|| {
                *progress = Progress::Requested;
                Arc::clone(injected)
            })
        })
    }

    pub(super) fn release_all(&self) {
        lock(&self.injected).iter().for_each(|one| one.release());
    }

    pub(super) fn set_rate(&self, bytes_per_second: usize) {
        self.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Returns how many bytes may be forwarded to a client at once.
    pub(super) fn chunk_size(&self) -> usize {
        match self.rate.load(Ordering::SeqCst) {
            0 => CHUNK_SIZE,
            rate => (rate / PARTS_PER_SECOND).clamp(1, CHUNK_SIZE),
        }
    }

    /// Waits for as long as sending these bytes takes.
    pub(super) fn pace(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate > 0 {
            thread::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
    }

    /// Returns how many of a connection's last bytes a later pattern may begin with.
    pub(super) fn longest_pattern(&self) -> usize {
        let all = lock(&self.injected);
        all.iter().map(|one| one.pattern.len()).max().unwrap_or(0)
    }
}
