//! Connections on which a request was not answered: [`LostConnections`].
//!
//! The server may still have such a request in its input, or get it later from the
//! network, and would carry it out after another connection has looked at the state.
//! Killing the old connection discards its input, so that what is found afterwards is
//! final.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use super::error::is_rejection;

/// The number of lost connections that are remembered. One is lost at a time, and each
/// is killed before the next request.
const MAX_LOST: usize = 100;

/// A connection on its server. The id alone is not enough: a restarted server, or
/// another one after a failover, has given it to another client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    id: String,
    /// The address of the client that the server sees.
    address: String,
}

impl ConnectionId {
    /// Asks the server (`CLIENT INFO`, Redis 6.2). Returns `None` if it does not tell.
    pub(super) async fn read(connection: &mut MultiplexedConnection) -> RedisResult<Option<Self>> {
        let info: RedisResult<String> = redis::cmd("CLIENT")
            .arg("INFO")
            .query_async(connection)
            .await;
        match info {
            Ok(info) => Ok(Self::parse(&info)),
            Err(error) if is_rejection(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = info.split_ascii_whitespace();
            let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.to_owned())
        };
        Some(Self {
            id: field("id")?,
            address: field("addr")?,
        })
    }

    fn kill_command(&self) -> redis::Cmd {
        let mut command = redis::cmd("CLIENT");
        command.arg("KILL").arg("ID").arg(&self.id);
        command.arg("ADDR").arg(&self.address);
        command
    }
}

/// The connections that are to be killed before the next request.
#[derive(Debug)]
pub(super) struct LostConnections {
    lost: Mutex<Vec<ConnectionId>>,
    /// Whether each lost connection could be killed so far.
    can_kill: AtomicBool,
}

impl Default for LostConnections {
    fn default() -> Self {
        Self {
            lost: Mutex::default(),
            can_kill: AtomicBool::new(true),
        }
    }
}

impl LostConnections {
    /// Records a connection on which a request was not answered.
    pub(super) fn add(&self, id: Option<&ConnectionId>) {
        let Some(id) = id else {
            self.can_kill.store(false, Ordering::Relaxed);
            return;
        };
        let mut lost = self.lock();
        if lost.len() < MAX_LOST {
            lost.push(id.clone());
        }
    }

    /// Returns whether a request that was not answered cannot be carried out after the
    /// next one: the server names connections and permits to kill them.
    pub(super) fn can_kill(&self) -> bool {
        self.can_kill.load(Ordering::Relaxed)
    }

    /// Kills the lost connections by a command on another one.
    pub(super) async fn kill(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        loop {
            let Some(id) = self.lock().last().cloned() else {
                return Ok(());
            };
            let killed: RedisResult<i64> = id.kill_command().query_async(connection).await;
            match killed {
                Ok(_) => {}
                Err(error) if is_rejection(&error) => self.cannot_kill(&error),
                Err(error) => return Err(error),
            }
            self.lock().retain(|other| *other != id);
        }
    }

    fn cannot_kill(&self, error: &RedisError) {
        if self.can_kill.swap(false, Ordering::Relaxed) {
            tracing::info!(
                %error,
                "the server does not permit CLIENT KILL; deliveries of requests without an \
                 answer are looked up for two minutes"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<ConnectionId>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_info_names_id_and_address() {
        let info = "id=7 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 fd=8 name= age=0\n";
        let id = ConnectionId::parse(info).expect("an id");
        assert_eq!((&*id.id, &*id.address), ("7", "127.0.0.1:5000"));
        let command = id.kill_command();
        let words: Vec<_> = command
            .args_iter()
            .filter_map(|word| match word {
                redis::Arg::Simple(word) => Some(String::from_utf8_lossy(word).into_owned()),
                _ => None,
            })
            .collect();
        assert_eq!(words.join(" "), "CLIENT KILL ID 7 ADDR 127.0.0.1:5000");
        assert_eq!(ConnectionId::parse("OK"), None);
    }
}
