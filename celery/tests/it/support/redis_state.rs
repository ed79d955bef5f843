//! Looking into the server.

use test_servers::RedisServer;

/// What kombu and the workers keep on the server.
pub(crate) trait RedisExt {
    /// How many messages wait in a queue.
    fn depth(&self, queue: &str) -> i64;

    /// How many deliveries are held by workers.
    fn unacked(&self) -> i64;

    /// Everything that is held, as it is stored.
    fn unacked_entries(&self) -> Vec<String>;

    /// Puts bytes at the end of a queue.
    fn push(&self, queue: &str, message: &[u8]);

    /// Nothing is held any more, in any way.
    fn assert_no_unacked(&self);
}

impl RedisExt for RedisServer {
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
        let keys = self.command(&["KEYS", "unacked*"]).texts();
        let raw = self.command(&["KEYS", "*.dead.raw"]).texts();
        assert!(
            keys.is_empty() && raw.is_empty(),
            "left over: {keys:?} {raw:?} {:?}",
            self.unacked_entries()
        );
    }
}
