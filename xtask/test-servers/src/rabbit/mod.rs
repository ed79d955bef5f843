//! A private RabbitMQ node on a free port.

mod launch;
mod program;
mod settings;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::process::{Folder, Process};
use crate::process_group::poll_until;
use crate::tls::{Certificates, ClientCertificate};
use launch::{explain, port_is_taken, read_from};

pub use settings::RabbitServerBuilder;

/// The time limit for a node to become ready; on two idle cores it takes five seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The time limit of an orderly stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit of a call of `rabbitmqctl`.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of virtual hosts that are created together: each one delays the start by 30 ms.
const VHOST_BATCH_SIZE: usize = 16;

/// A private RabbitMQ node, killed when dropped.
///
/// A start takes seconds. Tests that do not disturb the node share [one](Self::shared), each with
/// its own virtual host. All methods take `&self`, so that a test may stop the node while other
/// tasks use it.
///
/// The node has no plugins, listens on the loopback interface only and needs no `epmd`: its
/// distribution port is fixed and passed to `rabbitmqctl`.
///
/// ```no_run
/// use test_servers::RabbitServer;
///
/// let url = RabbitServer::shared().fresh_url();
///
/// let rabbit = RabbitServer::start();
/// rabbit.kill();
/// rabbit.restart(); // same port, same folder
/// assert_eq!(rabbit.list(&["list_queues", "name"]), Vec::<Vec<String>>::new());
/// ```
#[derive(Debug)]
pub struct RabbitServer {
    settings: RabbitServerBuilder,
    node: String,
    port: u16,
    distribution_port: u16,
    tls: Option<Tls>,
    /// The number of virtual hosts that `fresh_vhost` has returned.
    vhosts: Mutex<usize>,
    process: Mutex<Option<Process>>,
    folder: Folder,
}

#[derive(Debug)]
struct Tls {
    port: u16,
    certificates: Certificates,
    client: Option<ClientCertificate>,
}

impl RabbitServer {
    /// The password of [`client_bundle`](Self::client_bundle).
    pub const CLIENT_BUNDLE_PASSWORD: &str = ClientCertificate::BUNDLE_PASSWORD;

    /// Starts a private node.
    ///
    /// # Panics
    ///
    /// Panics if `rabbitmq-server` is missing or is not ready within a minute.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Returns the node that the tests of this process share; the first call starts it, and it is
    /// killed when the process exits.
    ///
    /// Its folder is kept, because a test that used it may have failed; `cargo xtask test` removes
    /// the folders when it starts.
    ///
    /// # Panics
    ///
    /// Panics like [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RabbitServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Returns a builder for a node with other settings.
    pub fn builder() -> RabbitServerBuilder {
        RabbitServerBuilder::default()
    }

    /// Returns the script that starts a node: the one that the environment variable
    /// [`RABBITMQ_SERVER`](super::RABBITMQ_SERVER) names, otherwise an installed one.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        program::server()
    }

    /// Returns `amqp://guest:guest@127.0.0.1:PORT`, which means the virtual host `/`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Returns the URL of a virtual host: `amqp://guest:guest@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn vhost_url(&self, name: &str) -> String {
        format!("{}/{}", self.url(), name.replace('/', "%2F"))
    }

    /// Returns the URL of a [fresh virtual host](Self::fresh_vhost).
    ///
    /// # Panics
    ///
    /// Panics like `fresh_vhost`.
    #[must_use]
    pub fn fresh_url(&self) -> String {
        self.vhost_url(&self.fresh_vhost())
    }

    /// Returns the name of an unused virtual host, in which every user has all permissions.
    ///
    /// Sixteen are created at the start; after that every sixteenth call creates sixteen more,
    /// which takes a second.
    ///
    /// # Panics
    ///
    /// Panics if more must be created and the node does not run.
    #[must_use]
    pub fn fresh_vhost(&self) -> String {
        let mut used = self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        if *used > 0 && used.is_multiple_of(VHOST_BATCH_SIZE) {
            let file = self.write_definitions(*used);
            self.control(&["import_definitions", &file.display().to_string()]);
        }
        *used += 1;
        settings::vhost(*used - 1)
    }

    /// Returns `amqps://guest:guest@127.0.0.1:PORT`, whose certificate is signed by
    /// [`authority`](Self::authority).
    ///
    /// # Panics
    ///
    /// Panics if the node was started without TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@127.0.0.1:{}", self.tls_port())
    }

    /// Returns the PEM file of the authority that signed the node's certificate.
    ///
    /// # Panics
    ///
    /// Panics if the node was started without TLS.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.tls().certificates.authority
    }

    /// Returns the PEM file of a client certificate that the node accepts.
    ///
    /// # Panics
    ///
    /// Panics if the node was started without client certificates.
    #[must_use]
    pub fn client_certificate(&self) -> &Path {
        &self.client().certificate
    }

    /// Returns the PEM file of the key of the client certificate, as PKCS#8.
    ///
    /// # Panics
    ///
    /// Panics if the node was started without client certificates.
    #[must_use]
    pub fn client_key(&self) -> &Path {
        &self.client().key
    }

    /// Returns the PKCS#12 file of the client certificate and its key, with the password
    /// [`CLIENT_BUNDLE_PASSWORD`](Self::CLIENT_BUNDLE_PASSWORD).
    ///
    /// # Panics
    ///
    /// Panics if the node was started without client certificates.
    #[must_use]
    pub fn client_bundle(&self) -> &Path {
        &self.client().bundle
    }

    /// Returns the port without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the port with TLS.
    ///
    /// # Panics
    ///
    /// Panics if the node was started without TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls().port
    }

    /// Returns the folder of the node's files and its log, `rabbit.log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the process id of the Erlang VM, or `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::id)
    }

    /// Runs `rabbitmqctl` against this node and returns its output without headers, in half a
    /// second.
    ///
    /// `stop_app` and `start_app` together close all connections and restart the broker within a
    /// second; [`restart`](Self::restart) takes five.
    ///
    /// # Panics
    ///
    /// Panics if the command fails or takes longer than thirty seconds.
    pub fn control(&self, arguments: &[&str]) -> String {
        let folder = Folder::new("rabbitmqctl");
        let log = folder.join("output");
        let mut command = self.control_command(arguments);
        let mut process = Process::start(&mut command, &log, &log)
            .unwrap_or_else(|error| panic!("cannot start rabbitmqctl: {error}"));
        let status = process.wait(CONTROL_TIMEOUT);
        process.kill();

        let output = read_from(&log, 0);
        match status {
            Some(status) if status.success() => output,
            Some(status) => panic!("rabbitmqctl {arguments:?} failed ({status}):\n{output}"),
            None => panic!("rabbitmqctl {arguments:?} did not exit in time:\n{output}"),
        }
    }

    /// Runs a listing of `rabbitmqctl` and returns its rows with their columns, for example
    /// `&["list_queues", "-p", "t0", "name", "messages"]`.
    ///
    /// # Panics
    ///
    /// Panics like [`control`](Self::control).
    #[must_use]
    pub fn list(&self, arguments: &[&str]) -> Vec<Vec<String>> {
        let output = self.control(arguments);
        let columns = |line: &str| line.split('\t').map(str::to_owned).collect();
        output.lines().map(columns).collect()
    }

    /// Kills the node with SIGKILL.
    pub fn kill(&self) {
        // Dropping the process kills it.
        self.process().take();
    }

    /// Shuts the node down with SIGTERM.
    ///
    /// # Panics
    ///
    /// Panics if the node has not exited after thirty seconds.
    pub fn stop(&self) {
        if let Some(mut running) = self.process().take() {
            running.signal("TERM");
            assert!(
                running.wait(STOP_TIMEOUT).is_some(),
                "rabbitmq on port {} did not exit after SIGTERM",
                self.port
            );
        }
    }

    /// Restarts the node on the same ports with the same folder, and waits until it is ready.
    ///
    /// Kills the node first if it still runs.
    ///
    /// # Panics
    ///
    /// Panics if the node does not start.
    pub fn restart(&self) {
        self.kill();
        // A closing connection may still occupy a port.
        let started = poll_until(START_TIMEOUT, || match self.launch() {
            Err(error) if port_is_taken(&error) => None,
            outcome => Some(outcome),
        });
        match started {
            Some(Ok(())) => {}
            Some(Err(error)) => panic!("{}", explain(&error)),
            None => panic!(
                "cannot restart rabbitmq: port {} is still in use",
                self.port
            ),
        }
    }

    /// Suspends the Erlang VM with SIGSTOP: connections stay open without replies.
    ///
    /// # Panics
    ///
    /// Panics if the node does not run.
    #[cfg(unix)]
    pub fn pause(&self) {
        self.send_signal("STOP");
    }

    /// Resumes a paused node with SIGCONT.
    ///
    /// # Panics
    ///
    /// Panics if the node does not run.
    #[cfg(unix)]
    pub fn resume(&self) {
        self.send_signal("CONT");
    }

    #[cfg(unix)]
    fn send_signal(&self, signal: &str) {
        let process = self.process();
        let process = process.as_ref();
        process.expect("the rabbitmq node runs").signal(signal);
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self) -> &Tls {
        let tls = self.tls.as_ref();
        tls.expect("the node was started with tls()")
    }

    fn client(&self) -> &ClientCertificate {
        let client = self.tls().client.as_ref();
        client.expect("the node was started with client_certificates()")
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::process::{Command, Stdio};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns an error unless the node replies to an AMQP protocol header within the timeout.
    fn connect(port: u16, timeout: Duration) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        stream.read_exact(&mut [0])
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn killed_node_restarts_with_its_durable_queues_and_port() {
        let rabbit = RabbitServer::start();
        let (port, pid) = (rabbit.port(), rabbit.pid());
        connect(port, TIMEOUT).unwrap();
        rabbit.control(&[
            "eval",
            "rabbit_amqqueue:declare({resource, <<\"t0\">>, queue, <<\"durable\">>}, true, false, \
             [], none, <<\"test\">>).",
        ]);
        // The node writes to disk asynchronously.
        rabbit.control(&["eval", "mnesia:sync_log()."]);
        rabbit.kill();
        assert!(connect(port, TIMEOUT).is_err());

        rabbit.restart();

        assert_eq!(rabbit.port(), port);
        assert_ne!(rabbit.pid(), pid);
        connect(port, TIMEOUT).unwrap();
        let queues = rabbit.list(&["list_queues", "-p", "t0", "name", "messages"]);
        assert_eq!(queues, [["durable", "0"]]);
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn two_nodes_run_with_different_settings() {
        let first = RabbitServer::builder()
            .user("ann", "word")
            .setting("consumer_timeout", "10000")
            .start();
        let second = RabbitServer::start();
        for rabbit in [&first, &second] {
            let node = rabbit.control(&["eval", "node()."]);
            assert_eq!(node.trim().trim_matches('\''), rabbit.node);
        }
        let users = |rabbit: &RabbitServer| rabbit.list(&["list_users"]).len();
        assert_eq!((users(&first), users(&second)), (2, 1));
        first.control(&["authenticate_user", "ann", "word"]);
        let timeout = first.control(&["eval", "application:get_env(rabbit, consumer_timeout)."]);
        assert_eq!(timeout.trim(), "{ok,10000}");
    }

    #[test]
    #[cfg(unix)]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn paused_node_replies_after_resume_and_stops_on_sigterm() {
        let rabbit = RabbitServer::start();
        rabbit.pause();
        assert!(connect(rabbit.port(), Duration::from_millis(100)).is_err());
        rabbit.resume();
        connect(rabbit.port(), TIMEOUT).unwrap();

        rabbit.stop();

        assert_eq!(rabbit.pid(), None);
        assert!(connect(rabbit.port(), TIMEOUT).is_err());
        let log = read_from(&rabbit.folder().join("rabbit.log"), 0);
        assert!(log.contains("stopped TCP listener"), "{log}");
    }

    #[test]
    #[ignore = "needs rabbitmq-server and openssl; run cargo xtask test"]
    fn tls_requires_a_client_certificate() {
        let rabbit = RabbitServer::builder().client_certificates().start();
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(arguments).stdin(Stdio::null());
            let output = command.output().unwrap();
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        };
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let address = rabbit.tls_url().replace("amqps://guest:guest@", "");
        let authority = text(rabbit.authority());
        let handshake = |arguments: &[&str]| {
            let client = ["s_client", "-tls1_2", "-verify_return_error"];
            let peer = ["-verify_ip", "127.0.0.1", "-CAfile", &authority];
            openssl(&[&client[..], &peer, &["-connect", &address], arguments].concat())
        };

        let (certificate, key) = (text(rabbit.client_certificate()), text(rabbit.client_key()));
        handshake(&["-cert", &certificate, "-key", &key]).unwrap();
        assert!(handshake(&[]).unwrap_err().contains("handshake failure"));

        let bundle = text(rabbit.client_bundle());
        let password = format!("pass:{}", RabbitServer::CLIENT_BUNDLE_PASSWORD);
        openssl(&["pkcs12", "-noout", "-in", &bundle, "-passin", &password]).unwrap();
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn shared_node_creates_more_virtual_hosts_on_demand() {
        let rabbit = RabbitServer::shared();
        let names: Vec<_> = (0..=VHOST_BATCH_SIZE)
            .map(|_| rabbit.fresh_vhost())
            .collect();
        let known = rabbit.list(&["list_vhosts"]).concat();
        assert!(names.iter().all(|name| known.contains(name)), "{known:?}");
        let url = rabbit.fresh_url();
        assert!(url.ends_with(&format!(":{}/t17", rabbit.port())), "{url}");
        assert_eq!(RabbitServer::shared().pid(), rabbit.pid());
        // Read by the next test.
        println!("port={}", rabbit.port());
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn shared_node_is_killed_when_the_test_process_exits() {
        let test = "shared_node_creates_more_virtual_hosts_on_demand";
        let output = Command::new(std::env::current_exe().unwrap())
            .args([test, "--include-ignored", "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        let port = text
            .split("port=")
            .nth(1)
            .and_then(|rest| rest.lines().next());
        let port = port.unwrap().parse().unwrap();
        poll_until(TIMEOUT, || connect(port, TIMEOUT).is_err().then_some(()))
            .expect("the node exits");
    }
}
