//! Settings of a private Redis server.

use std::path::PathBuf;

use crate::redis::RedisServer;

/// Settings of a [`RedisServer`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RedisServerBuilder {
    pub(super) password: Option<String>,
    pub(super) program: Option<PathBuf>,
    pub(super) tls: bool,
    pub(super) socket: bool,
    pub(super) sentinel: Vec<String>,
    pub(super) arguments: Vec<String>,
}

impl RedisServerBuilder {
    /// Sets the `redis-server` to start; default: the one from the environment.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Writes every change to disk before the reply, so that acknowledged changes survive
    /// [`RedisServer::kill`].
    pub fn append_only(self) -> Self {
        self.setting("appendonly", &["yes"])
            .setting("appendfsync", &["always"])
    }

    /// Sets the password of the default user.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Adds a user with all permissions.
    pub fn user(self, name: &str, password: &str) -> Self {
        let password = format!(">{password}");
        self.setting("user", &[name, "on", &password, "~*", "&*", "+@all"])
    }

    /// Makes the server a replica of `master`, which a Sentinel may promote.
    pub fn replica_of(mut self, master: &RedisServer) -> Self {
        self.password.clone_from(&master.settings().password);
        self.setting("replicaof", &["127.0.0.1", &master.port().to_string()])
    }

    /// Listens with TLS on an additional port.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Listens on a Unix socket, too; see [`RedisServer::socket`].
    pub fn unix_socket(mut self) -> Self {
        self.socket = true;
        self
    }

    /// Adds another setting of `redis.conf`.
    pub fn setting(mut self, name: &str, values: &[&str]) -> Self {
        self.arguments.push(format!("--{name}"));
        self.arguments
            .extend(values.iter().map(|&value| value.to_owned()));
        self
    }

    pub(super) fn configure_sentinel(mut self, lines: Vec<String>) -> Self {
        self.sentinel = lines;
        self
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    ///
    /// Panics if `redis-server` is missing or is not ready within ten seconds.
    #[must_use]
    pub fn start(&self) -> RedisServer {
        RedisServer::start_with(self)
    }
}
