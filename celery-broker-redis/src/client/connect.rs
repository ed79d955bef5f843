//! Opening one connection: failover, Sentinel, TLS, the protocol version.

use std::fmt;
#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use celery_runtime::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushInfo, RedisConnectionInfo, RedisError, RedisResult,
};
use tokio::time::timeout;

use super::lost::ConnectionId;
use crate::config::{Limits, Node, NodeAddress, RedisOptions, Sentinel, Tls};

/// Opens connections to the first configured server that answers.
#[derive(Clone)]
pub(super) struct Connector {
    nodes: Arc<[Node]>,
    sentinel: Option<Sentinel>,
    limits: Limits,
    client_name: Option<String>,
    state: Arc<ConnectorState>,
}

/// What earlier connections have shown.
#[derive(Default)]
struct ConnectorState {
    /// The node that answered last, which is tried first.
    current: AtomicUsize,
    /// Whether the server, or a proxy before it, does not support RESP3.
    resp2_only: AtomicBool,
}

/// An open connection.
pub(super) struct OpenedConnection {
    pub(super) connection: MultiplexedConnection,
    /// Whether the server can push, which requires RESP3.
    pub(super) pushes: bool,
    /// Identifies the connection for `CLIENT KILL`, if the server tells.
    pub(super) id: Option<ConnectionId>,
}

impl Connector {
    pub(super) fn new(options: &RedisOptions) -> Self {
        Self {
            nodes: options.nodes.clone().into(),
            sentinel: options.sentinel.clone(),
            limits: options.limits.clone(),
            client_name: options.client_name.clone(),
            state: Arc::default(),
        }
    }

    /// Opens a connection with the newest protocol that the server supports.
    /// Messages that the server pushes, and the end of the connection, are
    /// passed to `push`.
    pub(super) async fn connect(
        &self,
        push: impl Fn(PushInfo) + Clone + Send + Sync + 'static,
    ) -> RedisResult<OpenedConnection> {
        self.failover(|node| Box::pin(self.open(node, push.clone())))
            .await
    }

    /// Opens a connection for pub/sub only.
    pub(super) async fn pubsub(&self) -> RedisResult<redis::aio::PubSub> {
        self.failover(|node| Box::pin(self.open_pubsub(node))).await
    }

    /// Tries one node after the other. With Sentinel, [`client`](Self::client)
    /// finds the node.
    async fn failover<'a, T>(
        &self,
        open: impl Fn(usize) -> BoxFuture<'a, RedisResult<T>>,
    ) -> RedisResult<T> {
        let first = self.state.current.load(Ordering::Relaxed);
        let choices = match self.sentinel {
            Some(_) => 1,
            None => self.nodes.len(),
        };
        // All attempts together are limited by the timeout of one.
        let limit = self.limits.connect / u32::try_from(choices).unwrap_or(u32::MAX).max(1);
        let mut failure = None;
        for attempt in 0..choices {
            let node = (first + attempt) % choices;
            match within(limit, open(node)).await {
                Ok(opened) => {
                    self.state.current.store(node, Ordering::Relaxed);
                    return Ok(opened);
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        Err(failure
            .unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no server is configured").into()))
    }

    async fn open_pubsub(&self, node: usize) -> RedisResult<redis::aio::PubSub> {
        let client = self.client(node, ProtocolVersion::RESP2).await?;
        client.get_async_pubsub().await
    }

    async fn open(
        &self,
        node: usize,
        push: impl Fn(PushInfo) + Clone + Send + Sync + 'static,
    ) -> RedisResult<OpenedConnection> {
        if !self.state.resp2_only.load(Ordering::Relaxed) {
            match self.open_as(node, ProtocolVersion::RESP3, Some(push)).await {
                Err(error) if error.kind() == ErrorKind::RESP3NotSupported => {
                    self.state.resp2_only.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.open_as(node, ProtocolVersion::RESP2, None::<fn(PushInfo)>)
            .await
    }

    async fn open_as(
        &self,
        node: usize,
        protocol: ProtocolVersion,
        push: Option<impl Fn(PushInfo) + Send + Sync + 'static>,
    ) -> RedisResult<OpenedConnection> {
        let client = self.client(node, protocol).await?;
        let mut config = AsyncConnectionConfig::new()
            // `failover` limits the time.
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.limits.response));
        let pushes = push.is_some();
        if let Some(push) = push {
            config = config.set_push_sender(move |info| {
                push(info);
                Ok::<(), redis::aio::SendError>(())
            });
        }
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        if let Some(name) = &self.client_name {
            let mut command = redis::cmd("CLIENT");
            command.arg("SETNAME").arg(name);
            command.exec_async(&mut connection).await?;
        }
        let id = ConnectionId::read(&mut connection).await?;
        Ok(OpenedConnection {
            connection,
            pushes,
            id,
        })
    }

    async fn client(&self, node: usize, protocol: ProtocolVersion) -> RedisResult<Client> {
        let Some(sentinel) = &self.sentinel else {
            let node = &self.nodes[node];
            return client_of(node, protocol);
        };
        self.master(sentinel, protocol).await
    }

    /// Resolves the current master through the Sentinels.
    async fn master(&self, sentinel: &Sentinel, protocol: ProtocolVersion) -> RedisResult<Client> {
        let addresses = self
            .nodes
            .iter()
            .map(|node| address(&node.address))
            .collect::<Vec<_>>();
        let mut builder =
            SentinelClientBuilder::new(addresses, &sentinel.master, SentinelServerType::Master)?
                .set_client_to_redis_protocol(protocol)
                .set_client_to_redis_tcp_settings(tcp_settings())
                .set_client_to_sentinel_tcp_settings(tcp_settings());
        if let Some(node) = self.nodes.first() {
            builder = builder.set_client_to_redis_db(node.db.into());
            if let Some(user) = &node.user {
                builder = builder.set_client_to_redis_username(user);
            }
            if let Some(password) = &node.password {
                builder = builder.set_client_to_redis_password(password);
            }
        }
        if let Some(user) = &sentinel.user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &sentinel.password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        builder.build()?.async_get_client().await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    match timeout(limit, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(RedisError::from(std::io::Error::from(
            std::io::ErrorKind::TimedOut,
        ))),
    }
}

fn client_of(node: &Node, protocol: ProtocolVersion) -> RedisResult<Client> {
    let mut redis = RedisConnectionInfo::default()
        .set_db(node.db.into())
        .set_protocol(protocol)
        .set_lib_name("celery-rust", env!("CARGO_PKG_VERSION"));
    if let Some(user) = &node.user {
        redis = redis.set_username(user);
    }
    if let Some(password) = &node.password {
        redis = redis.set_password(password);
    }
    let info = address(&node.address)
        .into_connection_info()?
        .set_redis_settings(redis)
        .set_tcp_settings(tcp_settings());
    match &node.address {
        NodeAddress::Tcp { tls: Some(tls), .. } => tls_client(info, tls),
        _ => Client::open(info),
    }
}

/// Disables Nagle's algorithm: commands are small, and the client waits for
/// each reply.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn address(address: &NodeAddress) -> ConnectionAddr {
    match address {
        NodeAddress::Tcp {
            host,
            port,
            tls: None,
        } => ConnectionAddr::Tcp(host.clone(), *port),
        NodeAddress::Tcp {
            host,
            port,
            tls: Some(tls),
        } => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: tls.accept_invalid_certificate,
            tls_params: None,
        },
        NodeAddress::UnixSocket(path) => ConnectionAddr::Unix(path.clone()),
    }
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
fn tls_client(mut info: redis::ConnectionInfo, tls: &Tls) -> RedisResult<Client> {
    // A program may contain two cryptography providers, and rustls then
    // requires an explicit choice. A provider that is already installed stays.
    #[cfg(feature = "tls-rustls")]
    let _ = rustls::crypto::ring::default_provider().install_default();

    let read = |path: &Path| -> RedisResult<Vec<u8>> {
        std::fs::read(path).map_err(|error| {
            let cause = format!("{}: {error}", path.display());
            (
                ErrorKind::InvalidClientConfig,
                "cannot read a TLS file",
                cause,
            )
                .into()
        })
    };
    if tls.accept_any_hostname {
        let mut address = info.addr().clone();
        address.set_danger_accept_invalid_hostnames(true);
        info = info.set_addr(address);
    }
    let client_tls = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => Some(redis::ClientTlsConfig {
            client_cert: read(certificate)?,
            client_key: read(key)?,
        }),
        _ => None,
    };
    let root_cert = tls.ca_certificates.as_deref().map(read).transpose()?;
    if client_tls.is_none() && root_cert.is_none() {
        return Client::open(info);
    }
    Client::build_with_tls(
        info,
        redis::TlsCertificates {
            client_tls,
            root_cert,
        },
    )
}

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native-tls")))]
fn tls_client(_: redis::ConnectionInfo, _: &Tls) -> RedisResult<Client> {
    let text = "rediss:// requires the cargo feature `tls-rustls` or `tls-native-tls`";
    Err((ErrorKind::InvalidClientConfig, text).into())
}
