//! Free ports on the loopback interface.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// A port that nobody listens on and that this process has not handed out before.
///
/// Below the range from which systems take the ports of outgoing connections, so that one of
/// those cannot sit on the port of a server that is about to restart.
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
    fn free_ports_are_not_given_twice() {
        let ports: HashSet<u16> = (0..200).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 200);
    }
}
