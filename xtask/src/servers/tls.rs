//! A certificate authority for one server, made with the `openssl` program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of the authority, and of a certificate for `localhost` and `127.0.0.1` signed by it.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificates {
    pub(super) fn make(folder: &Path) -> Self {
        let extensions = folder.join("server.ext");
        // Version 3 with alternative names: rustls accepts no certificate without them.
        fs::write(
            &extensions,
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", extensions.display()));
        for arguments in [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
             -subj /CN=celery-test-authority -keyout ca.key -out ca.crt",
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -subj /CN=localhost -keyout server.key -out server.csr",
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
             -extfile server.ext -out server.crt",
        ] {
            openssl(folder, arguments);
        }
        Self {
            authority: folder.join("ca.crt"),
            certificate: folder.join("server.crt"),
            key: folder.join("server.key"),
        }
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run openssl ({error}): the tests with TLS make their certificates with \
                 it; install it (Debian and Ubuntu: apt-get install openssl)"
            )
        });
    assert!(
        output.status.success(),
        "openssl {arguments} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
