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

/// How long a node may take from its start to its first answer; on two idle cores it takes five
/// seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long one call of `rabbitmqctl` may take.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);

/// How many virtual hosts are made at a time: each one costs thirty milliseconds of the start.
const LOT: usize = 16;

/// A RabbitMQ node, killed when dropped.
///
/// A start takes seconds. Tests that do no harm to the node share [one](Self::shared), and each
/// of them takes a virtual host of its own. All methods take `&self`, so that a test may break the
/// node while others use it.
///
/// The node has no plugins, listens on the loopback interface only and needs no `epmd`: its
/// distribution port is fixed, and `rabbitmqctl` is told which it is.
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
    /// How many virtual hosts have been handed out.
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

    /// Starts a node of its own.
    ///
    /// # Panics
    ///
    /// If there is no `rabbitmq-server` or it does not start within a minute.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The node that the tests of this process share, started by the first who asks and killed
    /// when the process ends.
    ///
    /// Its folder stays, for nobody can tell whether a test failed who used it; `cargo xtask test`
    /// clears the folders away when it starts.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RabbitServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A node with settings of its own.
    pub fn builder() -> RabbitServerBuilder {
        RabbitServerBuilder::default()
    }

    /// The script that would be started: the one that the environment variable
    /// [`RABBITMQ_SERVER`](super::RABBITMQ_SERVER) names, or else an installed one.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        program::server()
    }

    /// `amqp://guest:guest@127.0.0.1:PORT`, without a virtual host: the one named `/`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// The same with a virtual host: `amqp://guest:guest@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn vhost_url(&self, name: &str) -> String {
        format!("{}/{}", self.url(), name.replace('/', "%2F"))
    }

    /// The URL of a [fresh virtual host](Self::fresh_vhost).
    ///
    /// # Panics
    ///
    /// As `fresh_vhost`.
    #[must_use]
    pub fn fresh_url(&self) -> String {
        self.vhost_url(&self.fresh_vhost())
    }

    /// The name of a virtual host that nobody has used yet, in which every user may do everything.
    ///
    /// Sixteen are there from the start; after them every sixteenth call takes a second.
    ///
    /// # Panics
    ///
    /// If more have to be made and the node does not run.
    #[must_use]
    pub fn fresh_vhost(&self) -> String {
        let mut used = self.vhosts.lock().unwrap_or_else(PoisonError::into_inner);
        if *used > 0 && used.is_multiple_of(LOT) {
            let file = self.write_definitions(*used);
            self.control(&["import_definitions", &file.display().to_string()]);
        }
        *used += 1;
        settings::vhost(*used - 1)
    }

    /// `amqps://guest:guest@127.0.0.1:PORT`; its certificate is signed by
    /// [`authority`](Self::authority).
    ///
    /// # Panics
    ///
    /// If the node was started without TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@127.0.0.1:{}", self.tls_port())
    }

    /// The PEM file of the authority that signed the node's certificate.
    ///
    /// # Panics
    ///
    /// If the node was started without TLS.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.tls().certificates.authority
    }

    /// The PEM file of a certificate that the node accepts.
    ///
    /// # Panics
    ///
    /// If the node was started without client certificates.
    #[must_use]
    pub fn client_certificate(&self) -> &Path {
        &self.client().certificate
    }

    /// The PEM file of the key that belongs to it, as PKCS#8.
    ///
    /// # Panics
    ///
    /// If the node was started without client certificates.
    #[must_use]
    pub fn client_key(&self) -> &Path {
        &self.client().key
    }

    /// The PKCS#12 file of both, with the password
    /// [`CLIENT_BUNDLE_PASSWORD`](Self::CLIENT_BUNDLE_PASSWORD).
    ///
    /// # Panics
    ///
    /// If the node was started without client certificates.
    #[must_use]
    pub fn client_bundle(&self) -> &Path {
        &self.client().bundle
    }

    /// The port without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port with TLS.
    ///
    /// # Panics
    ///
    /// If the node was started without TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls().port
    }

    /// The folder with the node's files and its log, `rabbit.log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process id of the Erlang machine, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::id)
    }

    /// Runs `rabbitmqctl` with these words against this node and returns what it prints, without
    /// headers. It takes half a second.
    ///
    /// `stop_app` and `start_app` together close all connections and start the broker anew within
    /// a second; [`restart`](Self::restart) takes five.
    ///
    /// # Panics
    ///
    /// If it fails or takes longer than thirty seconds.
    pub fn control(&self, words: &[&str]) -> String {
        let folder = Folder::new("rabbitmqctl");
        let log = folder.join("output");
        let mut command = self.control_command(words);
        let mut process = Process::start(&mut command, &log, &log)
            .unwrap_or_else(|error| panic!("cannot start rabbitmqctl: {error}"));
        let status = process.wait(CONTROL_LIMIT);
        process.kill();

        let output = read_from(&log, 0);
        match status {
            Some(status) if status.success() => output,
            Some(status) => panic!("rabbitmqctl {words:?} failed ({status}):\n{output}"),
            None => panic!("rabbitmqctl {words:?} does not end:\n{output}"),
        }
    }

    /// The rows that a listing prints, each with its columns: `&["list_queues", "-p", "t0",
    /// "name", "messages"]`.
    ///
    /// # Panics
    ///
    /// As [`control`](Self::control).
    #[must_use]
    pub fn list(&self, words: &[&str]) -> Vec<Vec<String>> {
        let output = self.control(words);
        let columns = |line: &str| line.split('\t').map(str::to_owned).collect();
        output.lines().map(columns).collect()
    }

    /// Kills the node as a power cut would.
    pub fn kill(&self) {
        // Dropping kills.
        self.process().take();
    }

    /// Ends the node in good order.
    ///
    /// # Panics
    ///
    /// If it has not ended after thirty seconds.
    pub fn stop(&self) {
        if let Some(mut running) = self.process().take() {
            running.signal("TERM");
            assert!(
                running.wait(STOP_LIMIT).is_some(),
                "rabbitmq on port {} does not stop",
                self.port
            );
        }
    }

    /// Starts the node again on the same ports, with what the same folder holds, and waits until
    /// it answers.
    ///
    /// A node that still runs is killed before.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn restart(&self) {
        self.kill();
        // A port may still be in the hands of a connection on its way out.
        let started = poll_until(START_LIMIT, || match self.launch() {
            Err(error) if port_is_taken(&error) => None,
            outcome => Some(outcome),
        });
        match started {
            Some(Ok(())) => {}
            Some(Err(error)) => panic!("{}", explain(&error)),
            None => panic!("rabbitmq cannot have port {} again", self.port),
        }
    }

    /// Stops the Erlang machine in its tracks: connections stay open and nobody answers.
    ///
    /// # Panics
    ///
    /// If the node does not run.
    #[cfg(unix)]
    pub fn pause(&self) {
        self.running("STOP");
    }

    /// Lets a paused node go on.
    ///
    /// # Panics
    ///
    /// If the node does not run.
    #[cfg(unix)]
    pub fn resume(&self) {
        self.running("CONT");
    }

    #[cfg(unix)]
    fn running(&self, signal: &str) {
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

    const LIMIT: Duration = Duration::from_secs(10);

    /// Whether the node begins to talk AMQP within the time.
    fn answers(port: u16, limit: Duration) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        stream.read_exact(&mut [0])
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn a_killed_node_keeps_its_durable_queues_and_its_port() {
        let rabbit = RabbitServer::start();
        let (port, pid) = (rabbit.port(), rabbit.pid());
        answers(port, LIMIT).unwrap();
        rabbit.control(&[
            "eval",
            "rabbit_amqqueue:declare({resource, <<\"t0\">>, queue, <<\"kept\">>}, true, false, \
             [], none, <<\"test\">>).",
        ]);
        // The node writes down what it was told a moment later.
        rabbit.control(&["eval", "mnesia:sync_log()."]);
        rabbit.kill();
        assert!(answers(port, LIMIT).is_err());

        rabbit.restart();

        assert_eq!(rabbit.port(), port);
        assert_ne!(rabbit.pid(), pid);
        answers(port, LIMIT).unwrap();
        let queues = rabbit.list(&["list_queues", "-p", "t0", "name", "messages"]);
        assert_eq!(queues, [["kept", "0"]]);
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn two_nodes_run_at_once_each_with_its_own_settings() {
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
    fn a_paused_node_answers_only_after_it_is_resumed_and_ends_when_it_is_told() {
        let rabbit = RabbitServer::start();
        rabbit.pause();
        assert!(answers(rabbit.port(), Duration::from_millis(100)).is_err());
        rabbit.resume();
        answers(rabbit.port(), LIMIT).unwrap();

        rabbit.stop();

        assert_eq!(rabbit.pid(), None);
        assert!(answers(rabbit.port(), LIMIT).is_err());
        let log = read_from(&rabbit.folder().join("rabbit.log"), 0);
        assert!(log.contains("stopped TCP listener"), "{log}");
    }

    #[test]
    #[ignore = "needs rabbitmq-server and openssl; run cargo xtask test"]
    fn tls_asks_for_the_certificate_of_the_client() {
        let rabbit = RabbitServer::builder().client_certificates().start();
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(arguments).stdin(Stdio::null());
            let output = command.output().unwrap();
            match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        };
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let address = rabbit.tls_url().replace("amqps://guest:guest@", "");
        let authority = text(rabbit.authority());
        let handshake = |more: &[&str]| {
            let all = ["s_client", "-tls1_2", "-verify_return_error"];
            let peer = ["-verify_ip", "127.0.0.1", "-CAfile", &authority];
            openssl(&[&all[..], &peer, &["-connect", &address], more].concat())
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
    fn the_shared_node_has_as_many_virtual_hosts_as_are_asked_for() {
        let rabbit = RabbitServer::shared();
        let names: Vec<_> = (0..=LOT).map(|_| rabbit.fresh_vhost()).collect();
        let known = rabbit.list(&["list_vhosts"]).concat();
        assert!(names.iter().all(|name| known.contains(name)), "{known:?}");
        let url = rabbit.fresh_url();
        assert!(url.ends_with(&format!(":{}/t17", rabbit.port())), "{url}");
        assert_eq!(RabbitServer::shared().pid(), rabbit.pid());
        // For the test below.
        println!("port={}", rabbit.port());
    }

    #[test]
    #[ignore = "needs rabbitmq-server; run cargo xtask test"]
    fn the_shared_node_ends_with_the_process_of_its_tests() {
        let test = "the_shared_node_has_as_many_virtual_hosts_as_are_asked_for";
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
        poll_until(LIMIT, || answers(port, LIMIT).is_err().then_some(())).expect("the node ends");
    }
}
