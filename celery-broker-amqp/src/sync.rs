//! Locking of short critical sections.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic of another holder leaves nothing half done here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
