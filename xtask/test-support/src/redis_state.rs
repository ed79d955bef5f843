//! The state of a Redis broker: [`RedisState`].

use test_servers::RedisServer;

/// Reads and changes what kombu and the workers store on a Redis server.
pub trait RedisState {
    /// Returns the number of ready messages in a queue.
    fn depth(&self, queue: &str) -> i64;

    /// Returns the number of unacknowledged deliveries.
    fn unacked(&self) -> i64;

    /// Returns the unacknowledged deliveries as they are stored.
    fn unacked_entries(&self) -> Vec<String>;

    /// Puts raw bytes at the end of a queue.
    fn push(&self, queue: &str, message: &[u8]);

    /// Asserts that no delivery is unacknowledged, delayed or quarantined.
    fn assert_no_unacked(&self);
}

impl RedisState for RedisServer {
    fn depth(&self, queue: &str) -> i64 {
        self.command(&["LLEN", queue]).integer()
    }

    fn unacked(&self) -> i64 {
        self.command(&["HLEN", "unacked"]).integer()
    }

    fn unacked_entries(&self) -> Vec<String> {
        self.command(&["HVALS", "unacked"]).texts()
    }

    fn push(&self, queue: &str, message: &[u8]) {
        let depth = self.command(&[b"LPUSH", queue.as_bytes(), message]);
        assert!(depth.integer() > 0);
    }

    fn assert_no_unacked(&self) {
        let mut keys = self.command(&["KEYS", "unacked*"]).texts();
        // A killed worker is among the owners until another one has restored its deliveries.
        keys.retain(|key| key != "unacked.owners");
        let raw = self.command(&["KEYS", "*.dead.raw"]).texts();
        assert!(
            keys.is_empty() && raw.is_empty(),
            "left over: {keys:?} {raw:?} {:?}",
            self.unacked_entries()
        );
    }
}
