//! A certificate authority for one server, created with the `openssl` program.

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
    /// Creates the authority and the server certificate in the folder.
    pub(super) fn create(folder: &Path) -> Self {
        openssl(
            folder,
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
             -subj /CN=celery-test-authority -keyout ca.key -out ca.crt",
        );
        // X.509 version 3 with subject alternative names, which rustls requires.
        let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        sign(folder, "server", "localhost", extensions);
        Self {
            authority: folder.join("ca.crt"),
            certificate: folder.join("server.crt"),
            key: folder.join("server.key"),
        }
    }
}

/// The files of a client certificate: certificate and key as PEM, and both in one PKCS#12 file.
#[derive(Debug, Clone)]
pub(super) struct ClientCertificate {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) bundle: PathBuf,
}

impl ClientCertificate {
    pub(super) const BUNDLE_PASSWORD: &str = "bundle";

    /// Creates a certificate signed by the authority whose [`Certificates`] are in the same folder.
    pub(super) fn create(folder: &Path) -> Self {
        let extensions = "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n";
        sign(folder, "client", "celery-test-client", extensions);
        let password = Self::BUNDLE_PASSWORD;
        openssl(
            folder,
            &format!(
                "pkcs12 -export -in client.crt -inkey client.key -certfile ca.crt \
                 -passout pass:{password} -out client.p12"
            ),
        );
        Self {
            certificate: folder.join("client.crt"),
            key: folder.join("client.key"),
            bundle: folder.join("client.p12"),
        }
    }
}

/// Creates `NAME.key` and `NAME.crt`, signed by the authority.
fn sign(folder: &Path, name: &str, subject: &str, extensions: &str) {
    let file = folder.join(format!("{name}.ext"));
    fs::write(&file, extensions)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    for arguments in [
        format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -subj /CN={subject} -keyout {name}.key -out {name}.csr"
        ),
        format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}.crt"
        ),
    ] {
        openssl(folder, &arguments);
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run openssl ({error}): the TLS tests create their certificates with it; \
                 install it (Debian and Ubuntu: apt-get install openssl)"
            )
        });
    assert!(
        output.status.success(),
        "openssl {arguments} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
