//! Starts a node: its configuration files and command lines.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::{RabbitServer, RabbitServerBuilder, START_TIMEOUT, Tls, VHOST_BATCH_SIZE, program};
use crate::ports::free_port;
use crate::process::{Folder, Process, StartError, last_lines};
use crate::process_group::poll_until;
use crate::tls::{Certificates, ClientCertificate};

impl RabbitServer {
    /// Starts a node on free ports.
    pub(super) fn start_with(settings: &RabbitServerBuilder) -> Self {
        loop {
            let server = Self::unstarted(settings);
            match server.launch() {
                Ok(()) => return server,
                // Another process has taken the port since `free_port` checked it: retry.
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
            // Not the host name, which may not resolve.
            node: format!("{name}-{random:x}@localhost"),
            port: free_port(),
            distribution_port: free_port(),
            tls: settings.tls.then(|| Tls {
                port: free_port(),
                certificates: Certificates::create(&folder),
                client: (settings.client_certificates).then(|| ClientCertificate::create(&folder)),
            }),
            vhosts: Mutex::new(0),
            process: Mutex::new(None),
            folder,
        }
    }

    /// Returns the major version of the installed RabbitMQ, such as 3.
    ///
    /// # Panics
    ///
    /// Panics like [`control`](Self::control), or if the version is not a number.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        let version = self.control(&["version"]);
        let major = version.split('.').next().unwrap_or_default().trim();
        let parsed = major.parse();
        parsed.unwrap_or_else(|_| panic!("not a version of RabbitMQ: {version:?}"))
    }

    /// Starts the process and waits until the node is ready.
    pub(super) fn launch(&self) -> Result<(), StartError> {
        self.write_configuration();
        let (log, output) = (self.folder.join("rabbit.log"), self.folder.join("output"));
        // Ignores the output of earlier starts.
        let (log_start, output_start) = (file_length(&log), file_length(&output));
        let mut command = self.command_line();
        let mut process = Process::start_as(self.node.as_ref(), &mut command, &output, &output)
            .map_err(|error| StartError::Program(command.get_program().to_owned(), error))?;
        let ready = poll_until(START_TIMEOUT, || {
            if process.exited().is_some() {
                return Some(Err(StartError::Exited(read_from(&output, output_start))));
            }
            let complete = read_from(&log, log_start).contains("Server startup complete");
            complete.then_some(Ok(()))
        });
        ready.unwrap_or_else(|| Err(StartError::Timeout(last_lines(&log))))?;
        *self.process() = Some(process);
        Ok(())
    }

    fn write_configuration(&self) {
        let mut lines = self.settings.configuration(self.port, self.tls.as_ref());
        // Loaded by the first start only: later starts use the database of the node.
        if !self.folder.join("mnesia").exists() {
            let file = self.write_definitions(0);
            lines += &format!("load_definitions = {}\n", file.display());
        }
        write(&self.folder.join("rabbitmq.conf"), &lines);
        write(&self.folder.join("enabled_plugins"), "[].\n");
    }

    /// Writes the definitions of a batch of virtual hosts, starting with this number.
    pub(super) fn write_definitions(&self, first: usize) -> PathBuf {
        let file = self.folder.join("definitions.json");
        let definitions = self.settings.definitions(first..first + VHOST_BATCH_SIZE);
        write(&file, &definitions.to_string());
        file
    }

    fn command_line(&self) -> Command {
        let path = program::server().unwrap_or_else(|| PathBuf::from("rabbitmq-server"));
        let mut command = program::command(&path, &self.folder);
        let port = self.distribution_port.to_string();
        command
            // Makes the script exec the Erlang VM, so that the process id is that of the VM.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            // No binding to cores, because several nodes would use the same cores.
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
            // Starts the distribution with this name, so that RabbitMQ does not start an epmd.
            .args(["-sname", &self.node])
            .args(["-start_epmd", "false", "-erl_epmd_port", &port])
            .args(["-kernel", "inet_dist_listen_min", &port])
            .args(["inet_dist_listen_max", &port])
            .args(["inet_dist_use_interface", "{127,0,0,1}"])
            // Limits the number of threads.
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

/// Returns the length of the file; 0 if there is no file.
fn file_length(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.len())
}

/// Returns the content of the file from this byte on.
pub(super) fn read_from(path: &Path, start: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}
