//! A private Redis server or Sentinel on a free port.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Folder, Process, StartError, last_lines};
use crate::process_group::poll_until;
use crate::resp::{Reply, RespConnection};
use crate::settings::RedisServerBuilder;
use crate::tls::Certificates;

/// The time limit for a server to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A private Redis server, killed when dropped.
///
/// All methods take `&self`, so that a test may stop the server while other tasks use it.
///
/// ```no_run
/// use test_servers::RedisServer;
///
/// let redis = RedisServer::start();
/// redis.command(&["SET", "greeting", "hello"]);
/// redis.kill();
/// redis.restart(); // same port, same folder; nothing was saved
/// assert_eq!(redis.command(&["EXISTS", "greeting"]).integer(), 0);
/// ```
#[derive(Debug)]
pub struct RedisServer {
    settings: RedisServerBuilder,
    port: u16,
    tls: Option<Tls>,
    process: Mutex<Option<Process>>,
    folder: Folder,
}

#[derive(Debug)]
struct Tls {
    port: u16,
    certificates: Certificates,
}

impl RedisServer {
    /// Starts a server without persistence.
    ///
    /// # Panics
    ///
    /// Panics if `redis-server` is missing or does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Starts a server that listens with TLS, too; see [`tls_url`](Self::tls_url).
    ///
    /// # Panics
    ///
    /// Panics if `redis-server` or `openssl` is missing or fails.
    #[must_use]
    pub fn with_tls() -> Self {
        Self::builder().tls().start()
    }

    /// Starts a Sentinel that monitors `master` under the name `name`, with a quorum of one.
    ///
    /// The Sentinel considers a master as down after half a second without a reply.
    ///
    /// # Panics
    ///
    /// Panics if `redis-server` is missing or does not start.
    #[must_use]
    pub fn sentinel(name: &str, master: &Self) -> Self {
        let mut lines = vec![
            format!("sentinel monitor {name} 127.0.0.1 {} 1", master.port),
            format!("sentinel down-after-milliseconds {name} 500"),
            format!("sentinel failover-timeout {name} 5000"),
        ];
        if let Some(password) = &master.settings.password {
            lines.push(format!("sentinel auth-pass {name} {password}"));
        }
        Self::builder().configure_sentinel(lines).start()
    }

    /// Returns a builder for a server with other settings.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// Returns `redis://127.0.0.1:PORT`, with the password if there is one and without a database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}127.0.0.1:{}", self.credentials(), self.port)
    }

    /// Returns the URL of a database: `redis://127.0.0.1:PORT/NUMBER`.
    #[must_use]
    pub fn database_url(&self, number: u32) -> String {
        format!("{}/{number}", self.url())
    }

    /// Returns `rediss://127.0.0.1:PORT`, whose certificate is signed by
    /// [`authority`](Self::authority).
    ///
    /// # Panics
    ///
    /// Panics if the server was started without TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let port = self.tls().port;
        format!("rediss://{}127.0.0.1:{port}", self.credentials())
    }

    /// Returns the PEM file of the authority that signed the server's certificate.
    ///
    /// # Panics
    ///
    /// Panics if the server was started without TLS.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.tls().certificates.authority
    }

    /// Returns the path of the Unix socket; the socket exists if the server was started with one.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // Not in the server's folder: the system limits socket paths to about a hundred bytes.
        env::temp_dir().join(format!("celery-test-{}.sock", self.port))
    }

    /// Returns the port without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of the server's files and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the process id, or `None` while the server does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::id)
    }

    /// Sends one command on a new connection and returns the reply.
    ///
    /// # Panics
    ///
    /// Panics if the server does not reply.
    pub fn command<W: AsRef<[u8]>>(&self, words: &[W]) -> Reply {
        self.try_command(COMMAND_TIMEOUT, words)
            .unwrap_or_else(|error| {
                panic!("no reply from redis on port {}: {error}", self.port);
            })
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&self) {
        // Dropping the process kills it.
        self.process().take();
    }

    /// Restarts the server on the same port with the same folder.
    ///
    /// Kills the server first if it still runs.
    ///
    /// # Panics
    ///
    /// Panics if the server does not start.
    pub fn restart(&self) {
        self.kill();
        let mut failure = None;
        // A closing connection may still occupy the port.
        poll_until(START_TIMEOUT, || match self.launch() {
            Ok(()) => Some(()),
            Err(error) => {
                failure = Some(error);
                None
            }
        })
        .unwrap_or_else(|| panic!("cannot restart redis on port {}: {failure:?}", self.port));
    }

    /// Suspends the process with SIGSTOP: connections stay open without replies.
    ///
    /// # Panics
    ///
    /// Panics if the server does not run.
    #[cfg(unix)]
    pub fn pause(&self) {
        self.send_signal("STOP");
    }

    /// Resumes a paused process with SIGCONT.
    ///
    /// # Panics
    ///
    /// Panics if the server does not run.
    #[cfg(unix)]
    pub fn resume(&self) {
        self.send_signal("CONT");
    }

    #[cfg(unix)]
    fn send_signal(&self, signal: &str) {
        let process = self.process();
        let process = process.as_ref();
        process.expect("the redis server runs").signal(signal);
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self) -> &Tls {
        self.tls
            .as_ref()
            .expect("the server was started with_tls()")
    }

    fn credentials(&self) -> String {
        match &self.settings.password {
            Some(password) => format!(":{password}@"),
            None => String::new(),
        }
    }

    pub(super) fn settings(&self) -> &RedisServerBuilder {
        &self.settings
    }

    /// Starts a server on free ports.
    pub(super) fn start_with(settings: &RedisServerBuilder) -> Self {
        loop {
            let folder = Folder::new("redis");
            let server = Self {
                settings: settings.clone(),
                port: free_port(),
                tls: settings.tls.then(|| Tls {
                    port: free_port(),
                    certificates: Certificates::create(&folder),
                }),
                process: Mutex::new(None),
                folder,
            };
            match server.launch() {
                Ok(()) => return server,
                // Another process has taken the port since `free_port` checked it: retry.
                Err(StartError::Exited(log)) if log.contains("Address already in use") => {}
                Err(error) => panic!("{}", error.explain("redis-server", super::REDIS_SERVER)),
            }
        }
    }

    /// Starts the process and waits until it is ready.
    fn launch(&self) -> Result<(), StartError> {
        let mut command = self.command_line();
        let log = self.folder.join("redis.log");
        let mut process = Process::start(&mut command, &log, &log)
            .map_err(|error| StartError::Program(command.get_program().to_owned(), error))?;
        let pid = format!("process_id:{}\r\n", process.id());
        let ready = poll_until(START_TIMEOUT, || {
            if process.exited().is_some() {
                return Some(Err(StartError::Exited(last_lines(&log))));
            }
            let Reply::Data(information) = self.try_command(START_TIMEOUT, &["INFO"]).ok()? else {
                return None;
            };
            let information = String::from_utf8_lossy(&information);
            // The process id excludes a server of another test on the same port.
            let is_ready = information.contains(&pid) && !information.contains("loading:1");
            is_ready.then_some(Ok(()))
        });
        ready.unwrap_or_else(|| Err(StartError::Timeout(last_lines(&log))))?;
        *self.process() = Some(process);
        Ok(())
    }

    fn command_line(&self) -> Command {
        let settings = &self.settings;
        let mut command = match &settings.program {
            Some(path) => Command::new(path),
            None => Command::new(program()),
        };
        command.current_dir(&*self.folder);
        if !settings.sentinel.is_empty() {
            // Sentinel rewrites its configuration file: write it at the first start only.
            let file = self.folder.join("sentinel.conf");
            if !file.exists() {
                fs::write(&file, settings.sentinel.join("\n"))
                    .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
            }
            command.arg(file);
        }
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        if !settings.sentinel.is_empty() {
            command.arg("--sentinel");
            return command;
        }
        command.args(["--save", "", "--daemonize", "no"]);
        command.arg("--dir").arg(&*self.folder);
        if let Some(tls) = &self.tls {
            command.args(["--tls-port", &tls.port.to_string()]);
            command.args(["--tls-auth-clients", "no"]);
            let files = &tls.certificates;
            command.arg("--tls-ca-cert-file").arg(&files.authority);
            command.arg("--tls-cert-file").arg(&files.certificate);
            command.arg("--tls-key-file").arg(&files.key);
        }
        if settings.socket {
            command.arg("--unixsocket").arg(self.socket());
        }
        if let Some(password) = &settings.password {
            command.args(["--requirepass", password, "--masterauth", password]);
        }
        command.args(&settings.arguments);
        command
    }

    fn try_command<W: AsRef<[u8]>>(&self, timeout: Duration, words: &[W]) -> io::Result<Reply> {
        let mut connection = RespConnection::open(self.port, timeout)?;
        if let Some(password) = &self.settings.password {
            connection.command(&[b"AUTH", password.as_bytes()])?;
        }
        let words: Vec<&[u8]> = words.iter().map(AsRef::as_ref).collect();
        connection.command(&words)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        if self.settings.socket {
            let _ = fs::remove_file(self.socket());
        }
    }
}

fn program() -> OsString {
    env::var_os(super::REDIS_SERVER)
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| OsStr::new("redis-server").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs redis-server"]
    fn killed_server_restarts_with_its_data_and_port() {
        let redis = RedisServer::builder().append_only().start();
        redis.command(&["RPUSH", "list", "a", "b"]);
        let port = redis.port();
        redis.kill();
        assert!(redis.try_command(COMMAND_TIMEOUT, &["PING"]).is_err());

        redis.restart();

        assert_eq!(redis.port(), port);
        let list = redis.command(&["LRANGE", "list", "0", "-1"]);
        assert_eq!(list.texts(), ["a", "b"]);
    }

    #[test]
    #[ignore = "needs redis-server"]
    fn password_is_required_and_user_is_accepted() {
        let redis = RedisServer::builder()
            .password("secret")
            .user("ann", "word")
            .start();
        let mut connection = RespConnection::open(redis.port(), COMMAND_TIMEOUT).unwrap();
        let refused = connection.command(&[b"PING"]).unwrap();
        assert!(matches!(refused, Reply::Error(text) if text.starts_with("NOAUTH")));
        let user = connection.command(&[b"AUTH", b"ann", b"word"]).unwrap();
        assert_eq!(user.text(), "OK");
        assert_eq!(redis.command(&["PING"]).text(), "PONG");
        assert!(redis.url().starts_with("redis://:secret@127.0.0.1:"));
    }

    #[test]
    #[cfg(unix)]
    #[ignore = "needs redis-server"]
    fn paused_server_replies_after_resume() {
        let redis = RedisServer::start();
        redis.pause();
        let reply = redis.try_command(Duration::from_millis(100), &["PING"]);
        assert!(reply.is_err());
        redis.resume();
        assert_eq!(redis.command(&["PING"]).text(), "PONG");
    }

    #[test]
    #[ignore = "needs redis-server and openssl"]
    fn tls_certificate_is_signed_by_the_authority() {
        let redis = RedisServer::with_tls();
        let address = redis.tls_url().replace("rediss://", "");
        let output = Command::new("openssl")
            .args([
                "s_client",
                "-verify_return_error",
                "-verify_ip",
                "127.0.0.1",
            ])
            .args(["-connect", &address, "-CAfile"])
            .arg(redis.authority())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    #[cfg(unix)]
    #[ignore = "needs redis-server"]
    fn unix_socket_exists_until_the_server_is_dropped() {
        let redis = RedisServer::builder().unix_socket().start();
        let path = redis.socket();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(redis);
        assert!(!path.exists());
    }

    #[test]
    #[ignore = "needs redis-server"]
    fn sentinel_promotes_the_replica_of_a_killed_master() {
        let master = RedisServer::start();
        let replica = RedisServer::builder().replica_of(&master).start();
        let sentinel = RedisServer::sentinel("mymaster", &master);
        let port_of_master = || {
            let address = sentinel.command(&["SENTINEL", "get-master-addr-by-name", "mymaster"]);
            address.texts()[1].clone()
        };
        assert_eq!(port_of_master(), master.port().to_string());
        poll_until(Duration::from_secs(30), || {
            let replicas = sentinel.command(&["SENTINEL", "replicas", "mymaster"]);
            matches!(replicas, Reply::Array(list) if !list.is_empty()).then_some(())
        })
        .expect("sentinel finds the replica");

        master.kill();

        poll_until(Duration::from_secs(30), || {
            (port_of_master() == replica.port().to_string()).then_some(())
        })
        .expect("sentinel promotes the replica");
    }
}
