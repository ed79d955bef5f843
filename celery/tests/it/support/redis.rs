//! Looking into the server.

use serde_json::Value as Json;
use xtask::servers::{RedisServer, Reply};

/// What kombu and the workers keep on the server.
pub(crate) trait Inspect {
    /// How many messages wait in a queue.
    fn depth(&self, queue: &str) -> i64;

    /// The messages of a queue, the next one first.
    fn messages(&self, queue: &str) -> Vec<Envelope>;

    /// How many deliveries are held by workers.
    fn held(&self) -> i64;

    /// Everything that is held, as it is stored.
    fn held_entries(&self) -> Vec<String>;

    /// Puts bytes at the end of a queue.
    fn push(&self, queue: &str, message: &[u8]);

    /// Nothing is held any more, in any way.
    fn assert_nothing_held(&self);
}

impl Inspect for RedisServer {
    fn depth(&self, queue: &str) -> i64 {
        self.command(&["LLEN", queue]).integer()
    }

    fn messages(&self, queue: &str) -> Vec<Envelope> {
        let Reply::Array(replies) = self.command(&["LRANGE", queue, "0", "-1"]) else {
            panic!("{queue} is not a list");
        };
        replies
            .iter()
            .rev()
            .map(|reply| match reply {
                Reply::Data(bytes) => Envelope(serde_json::from_slice(bytes).unwrap()),
                other => panic!("{queue} holds {other:?}"),
            })
            .collect()
    }

    fn held(&self) -> i64 {
        self.command(&["HLEN", "unacked"]).integer()
    }

    fn held_entries(&self) -> Vec<String> {
        self.command(&["HVALS", "unacked"]).texts()
    }

    fn push(&self, queue: &str, message: &[u8]) {
        let depth = self.command(&[b"LPUSH", queue.as_bytes(), message]);
        assert!(depth.integer() > 0);
    }

    fn assert_nothing_held(&self) {
        let keys = self.command(&["KEYS", "unacked*"]).texts();
        let raw = self.command(&["KEYS", "*.dead.raw"]).texts();
        assert!(
            keys.is_empty() && raw.is_empty(),
            "left over: {keys:?} {raw:?} {:?}",
            self.held_entries()
        );
    }
}

/// A message as kombu puts it into a list.
#[derive(Clone, Debug)]
pub(crate) struct Envelope(pub(crate) Json);

impl Envelope {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.0["headers"][name].as_str().unwrap_or_default()
    }

    /// The task's id.
    pub(crate) fn id(&self) -> &str {
        self.header("id")
    }
}
