//! How a node is started and spoken to: its files and its command lines.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::{LOT, RabbitServer, RabbitServerBuilder, START_LIMIT, Tls, program};
use crate::ports::free_port;
use crate::process::{Folder, Process, StartError, last_lines};
use crate::process_group::poll_until;
use crate::tls::{Certificates, ClientCertificate};

impl RabbitServer {
    /// Starts a node on ports that it gets for itself.
    pub(super) fn start_with(settings: &RabbitServerBuilder) -> Self {
        loop {
            let server = Self::unstarted(settings);
            match server.launch() {
                Ok(()) => return server,
                // Somebody took it between our look and the node's: take another one.
                Err(error) if port_is_taken(&error) => {}
                Err(error) => panic!("{}", explain(&error)),
            }
        }
    }

    fn unstarted(settings: &RabbitServerBuilder) -> Self {
        let folder = Folder::new("rabbitmq");
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let random = RandomState::new().build_hasher().finish();
        Self {
            settings: settings.clone(),
            // Not the machine's name, which need not resolve.
            node: format!("{name}-{random:x}@localhost"),
            port: free_port(),
            distribution_port: free_port(),
            tls: settings.tls.then(|| Tls {
                port: free_port(),
                certificates: Certificates::make(&folder),
                client: (settings.client_certificates).then(|| ClientCertificate::make(&folder)),
            }),
            vhosts: Mutex::new(0),
            process: Mutex::new(None),
            folder,
        }
    }

    /// Starts the process and waits until it answers.
    pub(super) fn launch(&self) -> Result<(), StartError> {
        self.write_configuration();
        let (log, output) = (self.folder.join("rabbit.log"), self.folder.join("output"));
        // What earlier starts wrote does not count.
        let (seen, said) = (length(&log), length(&output));
        let mut command = self.command_line();
        let mut process = Process::start_as(self.node.as_ref(), &mut command, &output, &output)
            .map_err(|error| StartError::Program(command.get_program().to_owned(), error))?;
        let answer = poll_until(START_LIMIT, || {
            if process.exited().is_some() {
                return Some(Err(StartError::Exited(read_from(&output, said))));
            }
            let complete = read_from(&log, seen).contains("Server startup complete");
            complete.then_some(Ok(()))
        });
        answer.unwrap_or_else(|| Err(StartError::Silent(last_lines(&log))))?;
        *self.process() = Some(process);
        Ok(())
    }

    fn write_configuration(&self) {
        let mut lines = self.settings.configuration(self.port, self.tls.as_ref());
        // Read by the first start only: a later one finds what the node has kept.
        if !self.folder.join("mnesia").exists() {
            let file = self.write_definitions(0);
            lines += &format!("load_definitions = {}\n", file.display());
        }
        write(&self.folder.join("rabbitmq.conf"), &lines);
        write(&self.folder.join("enabled_plugins"), "[].\n");
    }

    /// Writes the lot of virtual hosts that starts with this number.
    pub(super) fn write_definitions(&self, first: usize) -> PathBuf {
        let file = self.folder.join("definitions.json");
        let definitions = self.settings.definitions(first..first + LOT);
        write(&file, &definitions.to_string());
        file
    }

    fn command_line(&self) -> Command {
        let path = program::server().unwrap_or_else(|| PathBuf::from("rabbitmq-server"));
        let mut command = program::command(&path, &self.folder);
        let port = self.distribution_port.to_string();
        command
            // Has the script replaced by the Erlang machine, whose process id we then have.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            // Bound to cores, several nodes would sit on the same ones.
            .env("RABBITMQ_SCHEDULER_BIND_TYPE", "u")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", &*self.folder)
            .env("RABBITMQ_LOGS", self.folder.join("rabbit.log"))
            .env("RABBITMQ_CONFIG_FILE", self.folder.join("rabbitmq.conf"))
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                self.folder.join("enabled_plugins"),
            )
            .env("RABBITMQ_DIST_PORT", &port)
            // Named here, the node is distributed before RabbitMQ would start an epmd for it.
            .args(["-sname", &self.node])
            .args(["-start_epmd", "false", "-erl_epmd_port", &port])
            .args(["-kernel", "inet_dist_listen_min", &port])
            .args(["inet_dist_listen_max", &port])
            .args(["inet_dist_use_interface", "{127,0,0,1}"])
            // No more threads than a small machine would have.
            .args(["+S", "2:2", "+SDio", "2", "+A", "2"]);
        command
    }

    pub(super) fn control_command(&self, words: &[&str]) -> Command {
        let path = program::server().unwrap_or_else(|| PathBuf::from("rabbitmq-server"));
        let mut command = program::command(&program::beside(&path, "rabbitmqctl"), &self.folder);
        command
            .env(
                "RABBITMQ_CTL_ERL_ARGS",
                format!(
                    "-start_epmd false -erl_epmd_port {} -dist_listen false",
                    self.distribution_port
                ),
            )
            .args(["--silent", "--node", &self.node])
            .args(words);
        command
    }
}

pub(super) fn port_is_taken(error: &StartError) -> bool {
    matches!(error, StartError::Exited(output) if output.contains("eaddrinuse"))
}

pub(super) fn explain(error: &StartError) -> String {
    error.explain("rabbitmq-server", crate::RABBITMQ_SERVER)
}

fn write(path: &Path, text: &str) {
    fs::write(path, text)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// How many bytes the file has; none if it is not there.
fn length(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.len())
}

/// What the file holds from this byte on.
pub(super) fn read_from(path: &Path, start: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}
