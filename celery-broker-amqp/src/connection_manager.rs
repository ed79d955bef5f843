//! Connections that are opened on demand, and only by a call that needs one.

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
use crate::lanes::{LaneConnection, Targets};
use crate::options::{AmqpOptions, LoginMethod, Node, TlsOptions};
use crate::sync::lock;
use crate::transient_channel::TransientChannel;
use crate::transient_slot::SharedTransientSlot;

/// Owns one connection, and replaces a broken one on the next request for it.
#[derive(Debug)]
pub(crate) struct ConnectionManager {
    options: Arc<AmqpOptions>,
    /// Part of the connection name that RabbitMQ displays.
    purpose: &'static str,
    state: tokio::sync::Mutex<ConnectionState>,
    /// Why the server has blocked publishing on the newest connection. Outside of
    /// `state`, so that it can be read while a connection is being opened.
    blocked: Mutex<Option<watch::Receiver<Option<String>>>>,
    /// Shared by the two connections of a broker, like `transient`.
    targets: Arc<Targets>,
    transient: SharedTransientSlot,
    /// The index of the node that is tried first: the one that was connected last, or
    /// the one after the last that was tried.
    last_node: AtomicUsize,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct ConnectionState {
    connection: Option<Arc<AmqpConnection>>,
    /// A connection was opened before.
    has_connected: bool,
    /// When the last attempt to connect failed, and why.
    last_failure: Option<(Instant, lapin::Error)>,
}

impl ConnectionManager {
    pub(crate) fn new(
        options: Arc<AmqpOptions>,
        purpose: &'static str,
        targets: Arc<Targets>,
        transient: SharedTransientSlot,
    ) -> Self {
        Self {
            options,
            purpose,
            state: tokio::sync::Mutex::default(),
            blocked: Mutex::default(),
            targets,
            transient,
            last_node: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Returns the connection, and opens one if there is none that is usable.
    pub(crate) async fn connection(
        &self,
        context: ErrorContext<'_>,
    ) -> Result<Arc<AmqpConnection>, ServiceError> {
        let requested_at = Instant::now();
        let mut state = self.state.lock().await;
        let context = match state.has_connected {
            true => context.after_connect(),
            false => context,
        };
        if self.closed.load(Ordering::SeqCst) {
            return Err(context.error(ServiceErrorKind::Closed, "the broker was closed"));
        }
        if let Some(connection) = &state.connection
            && connection.is_usable()
            && (!connection.is_suspect() || TransientChannel::probe(connection).await)
        {
            return Ok(Arc::clone(connection));
        }
        // Calls that waited for an attempt to connect share its failure.
        if let Some((failed_at, error)) = &state.last_failure
            && *failed_at > requested_at
        {
            return Err(context.connect_error(error.clone()));
        }
        state.connection = None;
        match self.connect().await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *lock(&self.blocked) = Some(connection.watch_blocked());
                state.connection = Some(Arc::clone(&connection));
                state.has_connected = true;
                Ok(connection)
            }
            Err(ConnectError::Lapin(error)) => {
                state.last_failure = Some((Instant::now(), error.clone()));
                Err(context.connect_error(error))
            }
            Err(ConnectError::Invalid(cause)) => {
                Err(context.error(ServiceErrorKind::Invalid, cause))
            }
        }
    }

    /// Returns why the server has blocked publishing on this connection, if it has.
    pub(crate) fn blocked_reason(&self) -> Option<String> {
        let blocked = lock(&self.blocked);
        blocked.as_ref()?.borrow().clone()
    }

    /// Closes the connection for good.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(connection) = self.state.lock().await.connection.take() else {
            return;
        };
        connection.close().await;
    }

    /// Tries each node once, starting with the one that was connected last.
    async fn connect(&self) -> Result<AmqpConnection, ConnectError> {
        let nodes = &self.options.nodes;
        let first = self.last_node.load(Ordering::Relaxed);
        let mut failure = ConnectError::Invalid("the URL names no server".to_owned());
        for index in (0..nodes.len()).map(|offset| (first + offset) % nodes.len()) {
            // A call that is dropped leaves the next node to the next call.
            let next = (index + 1) % nodes.len();
            self.last_node.store(next, Ordering::Relaxed);
            match self.connect_to(&nodes[index]).await {
                Ok(connection) => {
                    self.last_node.store(index, Ordering::Relaxed);
                    return Ok(AmqpConnection::new(
                        connection,
                        self.options.response_timeout,
                        self.options.confirms,
                        Arc::clone(&self.targets),
                        Arc::clone(&self.transient),
                    ));
                }
                Err(error) => {
                    if nodes.len() > 1 {
                        tracing::warn!("connection: cannot connect to {}: {error}", nodes[index]);
                    }
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    /// Opens a connection to one node.
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

/// The reason why no connection could be opened.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    /// The options are invalid.
    #[error("{0}")]
    Invalid(String),
    /// lapin or the server failed.
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
}

fn uri(node: &Node, options: &AmqpOptions) -> AMQPUri {
    AMQPUri {
        // `connect_to` adds TLS after connecting, with the expected server name.
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

/// Reads the certificate files of the options.
fn tls_config(tls: &TlsOptions) -> Result<OwnedTLSConfig, String> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let identity = match (&tls.certificate, &tls.key) {
        (None, None) => None,
        // One file may contain both.
        (Some(file), None) | (None, Some(file)) => Some((file, file)),
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
        .map(|pem| String::from_utf8(pem).map_err(|_| "ca_certs is not a PEM file".to_owned()))
        .transpose()?;
    Ok(OwnedTLSConfig {
        identity,
        cert_chain,
    })
}
