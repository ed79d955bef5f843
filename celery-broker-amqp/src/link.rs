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

use crate::failure::{Attempt, is_silence, within};
use crate::known::Known;
use crate::options::{AmqpOptions, Login, Node, Tls};
use crate::publish::Lanes;

/// How long a connection that did not answer has to show that it is there.
const PROBE: Duration = Duration::from_secs(1);

/// One connection, made again when it is asked for after it broke.
#[derive(Debug)]
pub(crate) struct Link {
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
    live: Option<Arc<Live>>,
    /// When the last attempt failed, and why.
    failed: Option<(Instant, lapin::Error)>,
}

impl Link {
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
    pub(crate) async fn live(&self, attempt: Attempt<'_>) -> Result<Arc<Live>, ServiceError> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(attempt.error(ServiceErrorKind::Closed, "the broker was closed"));
        }
        if let Some(live) = &current.live
            && live.is_usable().await
        {
            return Ok(Arc::clone(live));
        }
        // Those who waited for an attempt share its end.
        if let Some((at, error)) = &current.failed
            && *at > asked
        {
            return Err(attempt.unreached(error.clone()));
        }
        current.live = None;
        match self.connect().await {
            Ok(live) => {
                let live = Arc::new(live);
                *lock(&self.notice) = Some(live.blocked.clone());
                current.live = Some(Arc::clone(&live));
                Ok(live)
            }
            Err(Unreached::Lapin(error)) => {
                current.failed = Some((Instant::now(), error.clone()));
                Err(attempt.unreached(error))
            }
            Err(Unreached::Invalid(cause)) => Err(attempt.error(ServiceErrorKind::Invalid, cause)),
        }
    }

    /// Why the server takes nothing on this connection, if it said so.
    pub(crate) fn blocked(&self) -> Option<String> {
        let notice = lock(&self.notice);
        notice.as_ref()?.borrow().clone()
    }

    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(live) = self.current.lock().await.live.take() else {
            return;
        };
        // One that does not answer is dropped all the same.
        let _ = live.answer(live.connection.close(200, "".into())).await;
    }

    /// Tries each node once, first the one that was there last.
    async fn connect(&self) -> Result<Live, Unreached> {
        let nodes = &self.options.nodes;
        let first = self.node.load(Ordering::Relaxed);
        let mut failure = Unreached::Invalid("the URL names no server".to_owned());
        for number in (0..nodes.len()).map(|offset| (first + offset) % nodes.len()) {
            match self.connect_to(&nodes[number]).await {
                Ok(connection) => {
                    self.node.store(number, Ordering::Relaxed);
                    return Ok(Live::new(connection, self.options.response_timeout));
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

    async fn connect_to(&self, node: &Node) -> Result<Connection, Unreached> {
        let tls = identity(&self.options.tls).map_err(Unreached::Invalid)?;
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
        Ok(within(self.options.connect_limit(), connecting).await?)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Unreached {
    /// The options cannot be used.
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
}

/// A connection as it was made.
pub(crate) struct Live {
    connection: Connection,
    /// How long an answer may take.
    limit: Duration,
    blocked: watch::Receiver<Option<String>>,
    /// An answer did not come, so that it has to be asked before it is used.
    suspect: AtomicBool,
    watcher: JoinHandle<()>,
    /// For what has to be brought to its end when its caller is gone.
    pub(crate) runtime: Handle,
    /// What is known to exist on the server.
    pub(crate) known: Known,
    /// The channels for publishing.
    pub(crate) lanes: Lanes,
}

impl Live {
    fn new(connection: Connection, limit: Duration) -> Self {
        let (notice, blocked) = watch::channel(None);
        let watcher = tokio::spawn(listen(connection.events_listener(), notice));
        Self {
            connection,
            limit,
            blocked,
            suspect: AtomicBool::new(false),
            watcher,
            runtime: Handle::current(),
            known: Known::default(),
            lanes: Lanes::default(),
        }
    }

    /// A new channel.
    pub(crate) async fn open(&self) -> lapin::Result<Channel> {
        self.answer(self.connection.create_channel()).await
    }

    /// What the server answers, within the time that it has.
    pub(crate) async fn answer<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let answer = within(self.limit, answer).await;
        if matches!(&answer, Err(error) if is_silence(error)) {
            self.suspect();
        }
        answer
    }

    /// Somebody waited in vain: the connection has to show that it is there
    /// before it is used again.
    pub(crate) fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits while the server takes nothing: what is given to it then is taken
    /// later, when its sender may have given up or sent it again.
    pub(crate) async fn unblocked(&self) {
        let mut blocked = self.blocked.clone();
        // An error means that the connection is gone, which shows soon.
        let _ = blocked.wait_for(Option::is_none).await;
    }

    async fn is_usable(&self) -> bool {
        if !self.is_connected() {
            return false;
        }
        // A server that blocks publishers is there and says nothing.
        if !self.suspect.load(Ordering::Relaxed) || self.blocked().is_some() {
            return true;
        }
        let probe = tokio::time::timeout(PROBE, self.connection.create_channel()).await;
        let answered = matches!(probe, Ok(Ok(_)));
        if answered {
            self.suspect.store(false, Ordering::Relaxed);
        }
        answered
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("connected", &self.is_connected())
            .field("blocked", &self.blocked())
            .finish_non_exhaustive()
    }
}

/// Passes on what the server says about the connection.
async fn listen(
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
                Login::Plain => SASLMechanism::Plain,
                Login::AmqPlain => SASLMechanism::AMQPlain,
                Login::External => SASLMechanism::External,
            }),
            ..AMQPQueryString::default()
        },
    }
}

/// Reads the files that the options name.
fn identity(tls: &Tls) -> Result<OwnedTLSConfig, String> {
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
    let authorities = tls.authorities.as_ref().map(read).transpose()?;
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
