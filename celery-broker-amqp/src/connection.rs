//! Connections, made when they are needed and never behind anybody's back.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use futures_util::StreamExt;
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::declaration_cache::DeclarationCache;
use crate::error::{ErrorContext, is_timeout, with_timeout};
use crate::options::{AmqpOptions, LoginMethod, Node, TlsOptions};
use crate::publish::ConfirmChannels;

/// How long a connection that did not answer has to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

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
                *lock(&self.notice) = Some(connection.blocked.clone());
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
        let _ = connection
            .await_response(connection.connection.close(200, "".into()))
            .await;
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

/// A connection as it was made.
pub(crate) struct AmqpConnection {
    connection: Connection,
    /// How long an answer may take.
    response_timeout: Duration,
    blocked: watch::Receiver<Option<String>>,
    /// An answer did not come, so that it has to be asked before it is used.
    suspect: AtomicBool,
    event_task: JoinHandle<()>,
    /// For what has to be brought to its end when its caller is gone.
    pub(crate) runtime: Handle,
    /// What is known to exist on the server.
    pub(crate) declarations: DeclarationCache,
    /// The channels for publishing.
    pub(crate) confirm_channels: ConfirmChannels,
}

impl AmqpConnection {
    fn new(connection: Connection, response_timeout: Duration) -> Self {
        let (notice, blocked) = watch::channel(None);
        let event_task = tokio::spawn(watch_events(connection.events_listener(), notice));
        Self {
            connection,
            response_timeout,
            blocked,
            suspect: AtomicBool::new(false),
            event_task,
            runtime: Handle::current(),
            declarations: DeclarationCache::default(),
            confirm_channels: ConfirmChannels::default(),
        }
    }

    /// A new channel.
    pub(crate) async fn open_channel(&self) -> lapin::Result<Channel> {
        self.await_response(self.connection.create_channel()).await
    }

    /// What the server answers, within the time that it has.
    pub(crate) async fn await_response<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let answer = with_timeout(self.response_timeout, answer).await;
        if matches!(&answer, Err(error) if is_timeout(error)) {
            self.mark_suspect();
        }
        answer
    }

    /// Somebody waited in vain: the connection has to show that it is there
    /// before it is used again.
    pub(crate) fn mark_suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn blocked_reason(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits while the server takes nothing: what is given to it then is taken
    /// later, when its sender may have given up or sent it again.
    pub(crate) async fn wait_until_unblocked(&self) {
        let mut blocked = self.blocked.clone();
        // An error means that the connection is gone, which shows soon.
        let _ = blocked.wait_for(Option::is_none).await;
    }

    async fn is_usable(&self) -> bool {
        if !self.is_connected() {
            return false;
        }
        // A server that blocks publishers is there and says nothing.
        if !self.suspect.load(Ordering::Relaxed) || self.blocked_reason().is_some() {
            return true;
        }
        let probe = tokio::time::timeout(PROBE_TIMEOUT, self.connection.create_channel()).await;
        let answered = matches!(probe, Ok(Ok(_)));
        if answered {
            self.suspect.store(false, Ordering::Relaxed);
        }
        answered
    }
}

impl Drop for AmqpConnection {
    fn drop(&mut self) {
        self.event_task.abort();
    }
}

impl fmt::Debug for AmqpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConnection")
            .field("connected", &self.is_connected())
            .field("blocked", &self.blocked_reason())
            .finish_non_exhaustive()
    }
}

/// Passes on what the server says about the connection.
async fn watch_events(
    events: impl futures_util::Stream<Item = Event>,
    blocked: watch::Sender<Option<String>>,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                let notice = format!("RabbitMQ takes no messages ({reason})");
                tracing::warn!("{notice}");
                blocked.send_replace(Some(notice));
            }
            Event::ConnectionUnblocked => {
                tracing::info!("RabbitMQ takes messages again");
                blocked.send_replace(None);
            }
            // The connection is gone, and so is whatever blocked it.
            Event::Error(_) => {
                blocked.send_replace(None);
            }
            _ => {}
        }
    }
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

/// A panic of another holder leaves nothing half done here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
