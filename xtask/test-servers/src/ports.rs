//! Free ports on the loopback interface.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Returns a port without a listener that this function has not returned before.
///
/// The port is below the range of ephemeral ports, so that no outgoing connection can occupy the
/// port of a server that is about to restart.
pub(super) fn free_port() -> u16 {
    static USED: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    const FIRST: u16 = 16_000;
    const COUNT: u16 = 16_000;

    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let used = used.get_or_insert_default();
    loop {
        let random = RandomState::new().build_hasher().finish() % u64::from(COUNT);
        let port = FIRST + u16::try_from(random).expect("below COUNT");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && used.insert(port) {
            return port;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_unique() {
        let ports: HashSet<u16> = (0..200).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 200);
    }
}
