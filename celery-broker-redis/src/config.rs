//! Options of a Redis broker or backend.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use celery_protocol::kombu::{PRIORITY_STEPS, SEPARATOR};

/// The address of a Redis, and the layout of kombu's keys on it.
///
/// ```
/// use celery_broker_redis::RedisOptions;
/// use serde_json::json;
///
/// let options = json!({"visibility_timeout": 600, "global_keyprefix": "shop:"});
/// let options = RedisOptions::parse(
///     "redis://:secret@one.example/2;redis://:secret@two.example/2",
///     options.as_object().expect("an object"),
/// )?;
/// assert_eq!(options.address(), "redis://one.example/2;redis://two.example/2");
/// # Ok::<(), celery_runtime::ServiceError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct RedisOptions {
    pub(crate) nodes: Vec<Node>,
    pub(crate) sentinel: Option<Sentinel>,
    pub(crate) address: String,
    pub(crate) layout: Layout,
    pub(crate) limits: Limits,
    pub(crate) client_name: Option<String>,
}

/// A server or a Sentinel.
#[derive(Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) address: NodeAddress,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) db: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NodeAddress {
    Tcp {
        host: String,
        port: u16,
        tls: Option<Tls>,
    },
    UnixSocket(PathBuf),
}

/// How the server's certificate is verified, and the client's certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tls {
    /// `ssl_cert_reqs=none`.
    pub(crate) accept_invalid_certificate: bool,
    /// `ssl_check_hostname=false`.
    pub(crate) accept_any_hostname: bool,
    pub(crate) ca_certificates: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// Sentinel settings: the configured nodes are Sentinels, and know the address
/// of the master of this name.
#[derive(Clone, PartialEq)]
pub(crate) struct Sentinel {
    pub(crate) master: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

/// Names of keys and channels, and the times that all workers on one database
/// have to share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    pub(crate) prefix: String,
    pub(crate) separator: String,
    pub(crate) steps: Vec<u8>,
    pub(crate) unacked: String,
    pub(crate) unacked_index: String,
    pub(crate) unacked_mutex: String,
    pub(crate) unacked_mutex_expire: Duration,
    pub(crate) restore_limit: usize,
    pub(crate) restore_interval: Duration,
    /// One of so many restores, at `restore_interval`, reads the index.
    pub(crate) restore_throttle: u32,
    pub(crate) visibility_timeout: Duration,
    /// The time without renewal after which a process counts as dead; zero if its
    /// deliveries wait for the visibility timeout.
    pub(crate) rescue_after: Duration,
    pub(crate) order: QueueOrder,
    /// The text before the exchange's name in channels; `{db}` stands for the
    /// database.
    pub(crate) fanout_prefix: String,
    pub(crate) fanout_patterns: bool,
}

/// The shortest interval of renewals.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_millis(100);

/// The order in which a consumer reads its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueOrder {
    /// One message from each queue in turn.
    RoundRobin,
    /// By name.
    Sorted,
    /// In the configured order.
    Priority,
}

/// Timeouts, and the size of the connection pool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
    /// The interval of pings on a connection that only receives.
    pub(crate) health_check: Duration,
    pub(crate) connections: usize,
}

impl Layout {
    /// Returns the interval at which a worker renews what it holds.
    pub(crate) fn renewal_interval(&self) -> Duration {
        let held = self.visibility_timeout / 3;
        let owner = match self.rescue_after {
            Duration::ZERO => held,
            rescue_after => rescue_after / 16,
        };
        held.min(owner).max(MIN_RENEWAL_INTERVAL)
    }
}

impl RedisOptions {
    /// Returns the URL without credentials, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the prefix of every key: `global_keyprefix`, empty by default.
    pub fn key_prefix(&self) -> &str {
        &self.layout.prefix
    }

    /// Returns the time after which an unsettled delivery is restored to its
    /// queue.
    pub fn visibility_timeout(&self) -> Duration {
        self.layout.visibility_timeout
    }

    pub(crate) fn db(&self) -> u32 {
        self.nodes.first().map_or(0, |node| node.db)
    }
}

/// Shows no credentials.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("address", &self.address)
            .field("layout", &self.layout)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// kombu's interval also where the option is 0 or less.
pub(crate) const DEFAULT_RESTORE_INTERVAL: Duration = Duration::from_secs(10);

/// The maximum period of restores; a clock cannot add any longer one.
const MAX_RESTORE_PERIOD: Duration = Duration::from_secs(365 * 24 * 3600);

impl Layout {
    /// Returns the time between two restores of one consumer.
    pub(crate) fn restore_period(&self) -> Duration {
        let period = self.restore_interval.saturating_mul(self.restore_throttle);
        period.min(MAX_RESTORE_PERIOD)
    }
}

/// The defaults of kombu.
impl Default for Layout {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            separator: SEPARATOR.to_owned(),
            steps: PRIORITY_STEPS.to_vec(),
            unacked: "unacked".to_owned(),
            unacked_index: "unacked_index".to_owned(),
            unacked_mutex: "unacked_mutex".to_owned(),
            unacked_mutex_expire: Duration::from_secs(300),
            restore_limit: usize::MAX,
            restore_interval: DEFAULT_RESTORE_INTERVAL,
            restore_throttle: 10,
            visibility_timeout: Duration::from_secs(3600),
            rescue_after: Duration::from_secs(24),
            order: QueueOrder::RoundRobin,
            fanout_prefix: "/{db}.".to_owned(),
            fanout_patterns: true,
        }
    }
}

/// kombu has no timeouts by default, which can block a worker forever.
impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(4),
            response: Duration::from_secs(5),
            health_check: Duration::from_secs(25),
            connections: 10,
        }
    }
}
