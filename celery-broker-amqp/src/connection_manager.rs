//! Connections, made when they are needed and never behind anybody's back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use celery_runtime::{ServiceError, ServiceErrorKind};
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use lapin::{Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::connection::AmqpConnection;
use crate::error::{ErrorContext, with_timeout};
use crate::options::{AmqpOptions, LoginMethod, Node, TlsOptions};
use crate::sync::lock;

/// One connection, made again when it is asked for after it broke.
#[derive(Debug)]
pub(crate) struct ConnectionManager {
    options: Arc<AmqpOptions>,
    /// What RabbitMQ shows it as.
    purpose: &'static str,
    current: tokio::sync::Mutex<Current>,
    /// What the server says about the newest connection; read while somebody
    /// makes another.
    notice: Mutex<Option<watch::Receiver<Option<String>>>>,
    /// The node that was there last.
    node: AtomicUsize,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<Arc<AmqpConnection>>,
    /// When the last context failed, and why.
    failed: Option<(Instant, lapin::Error)>,
}

impl ConnectionManager {
    pub(crate) fn new(options: Arc<AmqpOptions>, purpose: &'static str) -> Self {
        Self {
            options,
            purpose,
            current: tokio::sync::Mutex::default(),
            notice: Mutex::default(),
            node: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// The connection, made now where there is none that works.
    pub(crate) async fn connection(
        &self,
        context: ErrorContext<'_>,
    ) -> Result<Arc<AmqpConnection>, ServiceError> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(context.error(ServiceErrorKind::Closed, "the broker was closed"));
        }
        if let Some(connection) = &current.connection
            && connection.is_usable().await
        {
            return Ok(Arc::clone(connection));
        }
        // Those who waited for an context share its end.
        if let Some((at, error)) = &current.failed
            && *at > asked
        {
            return Err(context.connect_error(error.clone()));
        }
        current.connection = None;
        match self.connect().await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *lock(&self.notice) = Some(connection.watch_blocked());
                current.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(ConnectError::Lapin(error)) => {
                current.failed = Some((Instant::now(), error.clone()));
                Err(context.connect_error(error))
            }
            Err(ConnectError::Invalid(cause)) => {
                Err(context.error(ServiceErrorKind::Invalid, cause))
            }
        }
    }

    /// Why the server takes nothing on this connection, if it said so.
    pub(crate) fn blocked_reason(&self) -> Option<String> {
        let notice = lock(&self.notice);
        notice.as_ref()?.borrow().clone()
    }

    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(connection) = self.current.lock().await.connection.take() else {
            return;
        };
        // One that does not answer is dropped all the same.
        connection.close().await;
    }

    /// Tries each node once, first the one that was there last.
    async fn connect(&self) -> Result<AmqpConnection, ConnectError> {
        let nodes = &self.options.nodes;
        let first = self.node.load(Ordering::Relaxed);
        let mut failure = ConnectError::Invalid("the URL names no server".to_owned());
        for number in (0..nodes.len()).map(|offset| (first + offset) % nodes.len()) {
            match self.connect_to(&nodes[number]).await {
                Ok(connection) => {
                    self.node.store(number, Ordering::Relaxed);
                    return Ok(AmqpConnection::new(
                        connection,
                        self.options.response_timeout,
                    ));
                }
                Err(error) => {
                    if nodes.len() > 1 {
                        tracing::warn!("cannot connect to {}: {error}", nodes[number]);
                    }
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, node: &Node) -> Result<Connection, ConnectError> {
        let tls = tls_config(&self.options.tls).map_err(ConnectError::Invalid)?;
        let name = self.options.connection_name.as_deref().unwrap_or("celery");
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{name} ({})", self.purpose).into());
        let server_name = self.options.tls.server_name.clone();
        let runtime = lapin::runtime::default_runtime()?;
        let encrypted = node.encrypted;
        let connecting = Connection::connector(
            uri(node, &self.options),
            runtime,
            async move |uri: AMQPUri, runtime| {
                let plain = uri
                    .connect_with_config_async(tls.as_ref(), &runtime)
                    .await?;
                if !encrypted {
                    return Ok(plain);
                }
                let name = server_name.as_deref().unwrap_or(&uri.authority.host);
                Ok(plain.into_tls(name, tls.as_ref()).await?)
            },
            properties,
        );
        Ok(with_timeout(self.options.effective_connect_timeout(), connecting).await?)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    /// The options cannot be used.
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
}

fn uri(node: &Node, options: &AmqpOptions) -> AMQPUri {
    AMQPUri {
        // The connector adds TLS itself, under the name that is expected.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: node.user.clone(),
                password: node.password.clone(),
            },
            host: node.host.clone(),
            port: node.port,
        },
        vhost: node.virtual_host.clone(),
        query: AMQPQueryString {
            heartbeat: Some(options.heartbeat_seconds()),
            auth_mechanism: Some(match options.login {
                LoginMethod::Plain => SASLMechanism::Plain,
                LoginMethod::AmqPlain => SASLMechanism::AMQPlain,
                LoginMethod::External => SASLMechanism::External,
            }),
            ..AMQPQueryString::default()
        },
    }
}

/// Reads the files that the options name.
fn tls_config(tls: &TlsOptions) -> Result<OwnedTLSConfig, String> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let identity = match (&tls.certificate, &tls.key) {
        (None, None) => None,
        // One file may hold both.
        (Some(one), None) | (None, Some(one)) => Some((one, one)),
        (Some(certificate), Some(key)) => Some((certificate, key)),
    };
    let identity = match identity {
        None => None,
        Some((certificate, key)) => Some(OwnedIdentity::PKCS8 {
            pem: read(certificate)?,
            key: read(key)?,
        }),
    };
    let authorities = tls.ca_certificates.as_ref().map(read).transpose()?;
    let cert_chain = authorities
        .map(|pem| String::from_utf8(pem).map_err(|_| "ca_certs is no PEM file".to_owned()))
        .transpose()?;
    Ok(OwnedTLSConfig {
        identity,
        cert_chain,
    })
}
