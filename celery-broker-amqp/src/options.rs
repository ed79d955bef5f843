//! The options of a RabbitMQ broker, read from URLs and Celery's settings. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use celery_runtime::url::{ServiceUrl, redacted};
use celery_runtime::{QueueType, ServiceError, ServiceErrorKind};
use serde_json::{Map, Value};

use crate::table::short_string;

/// The address of a RabbitMQ server or cluster, and the options of its
/// connections.
///
/// ```
/// use celery_broker_amqp::AmqpOptions;
///
/// let options = AmqpOptions::parse("amqp://me:secret@one.example/shop;amqp://two.example/shop")?;
/// assert_eq!(options.address(), "amqp://me:***@one.example/shop;amqp://two.example/shop");
/// # Ok::<(), celery_runtime::ServiceError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct AmqpOptions {
    pub(crate) nodes: Vec<Node>,
    pub(crate) address: String,
    pub(crate) tls: TlsOptions,
    pub(crate) login: LoginMethod,
    heartbeat: Option<Duration>,
    connect_timeout: Option<Duration>,
    pub(crate) response_timeout: Duration,
    pub(crate) confirms: PublisherConfirms,
    pub(crate) delayed_queue_type: QueueType,
    pub(crate) connection_name: Option<String>,
    pub(crate) due_check_interval: Duration,
}

/// One node of a cluster.
#[derive(Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) virtual_host: String,
    pub(crate) encrypted: bool,
}

/// The certificates of TLS. The files are read for each new connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TlsOptions {
    /// The certificates of the authorities that may sign the server's.
    pub(crate) ca_certificates: Option<PathBuf>,
    /// The client's certificate.
    pub(crate) certificate: Option<PathBuf>,
    /// The private key of the client's certificate.
    pub(crate) key: Option<PathBuf>,
    /// The name in the server's certificate, if it differs from the host.
    pub(crate) server_name: Option<String>,
}

/// The SASL mechanism that the client logs in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoginMethod {
    Plain,
    AmqPlain,
    /// The client's certificate is its identity.
    External,
}

/// Whether publishing waits for publisher confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublisherConfirms {
    On,
    Off,
}

/// Used unless the URL or a setting has another value.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

impl AmqpOptions {
    /// Parses one URL, or several separated by `;` for failover.
    ///
    /// The form is `amqp://user:password@host:port/vhost`. User and password
    /// default to `guest`, the port to 5672 and the virtual host to `/` (which
    /// `//` and `/%2f` also mean). `amqps://` uses TLS and port 5671. The query
    /// accepts `heartbeat` and `connection_timeout` in seconds, `auth_mechanism`,
    /// and for TLS the files `cacertfile`, `certfile` and `keyfile` and the name
    /// `server_name_indication`.
    ///
    /// # Errors
    ///
    /// Returns an error if a URL is malformed or its query has an unknown
    /// parameter.
    pub fn parse(urls: &str) -> Result<Self, ServiceError> {
        let invalid = |cause: String| invalid("read the URL", redacted(urls), cause);
        let parsed = ServiceUrl::parse_list(urls).map_err(invalid)?;
        let address: Vec<_> = parsed.iter().map(ToString::to_string).collect();
        let mut options = Self {
            nodes: parsed
                .iter()
                .map(Node::read)
                .collect::<Result<_, _>>()
                .map_err(invalid)?,
            address: address.join(";"),
            tls: TlsOptions::default(),
            login: LoginMethod::Plain,
            heartbeat: None,
            connect_timeout: None,
            response_timeout: DEFAULT_RESPONSE_TIMEOUT,
            confirms: PublisherConfirms::On,
            delayed_queue_type: QueueType::Quorum,
            connection_name: None,
            due_check_interval: Duration::from_secs(30),
        };
        for (name, value) in parsed.iter().flat_map(|url| &url.query) {
            options.read_query(name, value).map_err(invalid)?;
        }
        Ok(options)
    }

    /// Returns the URLs without their passwords.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets the AMQP heartbeat, unless the URL has one. Defaults to 10 s.
    ///
    /// A peer that is silent for twice this time is considered dead. The server
    /// may ask for a shorter heartbeat, which then applies; zero leaves the choice
    /// to the server.
    #[must_use]
    pub fn heartbeat(self, heartbeat: Duration) -> Self {
        Self {
            heartbeat: self.heartbeat.or(Some(heartbeat)),
            ..self
        }
    }

    /// Sets the timeout of connecting to one server, unless the URL has one.
    /// Defaults to 4 s.
    #[must_use]
    pub fn connect_timeout(self, limit: Duration) -> Self {
        Self {
            connect_timeout: self.connect_timeout.or(Some(limit)),
            ..self
        }
    }

    /// Sets the timeout of the server's responses to requests other than
    /// publishing, such as a queue declaration. Defaults to 5 s.
    #[must_use]
    pub fn response_timeout(self, response_timeout: Duration) -> Self {
        Self {
            response_timeout,
            ..self
        }
    }

    /// Sets the type of the queues for delayed messages. Defaults to quorum.
    /// Queues that exist already keep their type.
    #[must_use]
    pub fn delayed_queue_type(self, delayed_queue_type: QueueType) -> Self {
        Self {
            delayed_queue_type,
            ..self
        }
    }

    /// Sets how often a consumer checks whether due messages wait that only other
    /// workers, such as Python's, have room for. Defaults to 30 s.
    #[must_use]
    pub fn due_check_interval(self, due_check_interval: Duration) -> Self {
        Self {
            due_check_interval,
            ..self
        }
    }

    /// Applies Celery's `broker_transport_options`.
    ///
    /// Of these, `confirm_publish` (default `true`, unlike in Celery),
    /// `client_properties` (its `connection_name`, which RabbitMQ displays) and
    /// `login_method` have an effect. Other options are ignored.
    ///
    /// # Errors
    ///
    /// Returns an error if one of them has a value of the wrong type.
    pub fn transport_options(mut self, given: &Map<String, Value>) -> Result<Self, ServiceError> {
        for (name, value) in given {
            self.read_transport_option(name, value)
                .map_err(|cause| invalid("read the transport option", name.clone(), cause))?;
        }
        Ok(self)
    }

    /// Sets the login method, Celery's `broker_login_method`: `PLAIN` (the
    /// default), `AMQPLAIN` or `EXTERNAL`.
    ///
    /// # Errors
    ///
    /// Returns an error if the method is unknown.
    pub fn login_method(self, name: &str) -> Result<Self, ServiceError> {
        let login = LoginMethod::parse(name)
            .map_err(|cause| invalid("read", "broker_login_method".to_owned(), cause))?;
        Ok(Self { login, ..self })
    }

    /// Enables TLS with Celery's `broker_use_ssl`: a map of `ca_certs`,
    /// `certfile`, `keyfile` (paths of PEM files) and `server_hostname`.
    ///
    /// The server's certificate is always verified.
    ///
    /// # Errors
    ///
    /// Returns an error if the map disables verification or has a value of the
    /// wrong type.
    pub fn use_ssl(mut self, given: &Map<String, Value>) -> Result<Self, ServiceError> {
        self.read_use_ssl(given)
            .map_err(|cause| invalid("read", "broker_use_ssl".to_owned(), cause))?;
        Ok(self)
    }

    /// Returns the heartbeat in whole seconds, the unit of AMQP.
    pub(crate) fn heartbeat_seconds(&self) -> u16 {
        let seconds = self
            .heartbeat
            .unwrap_or(DEFAULT_HEARTBEAT)
            .as_secs_f64()
            .ceil();
        seconds.min(f64::from(u16::MAX)) as u16
    }

    pub(crate) fn effective_connect_timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT)
    }

    fn read_query(&mut self, name: &str, value: &str) -> Result<(), String> {
        let seconds = || {
            let seconds: f64 = value.parse().map_err(|_| invalid_seconds(name, value))?;
            Duration::try_from_secs_f64(seconds).map_err(|_| invalid_seconds(name, value))
        };
        match name {
            "heartbeat" => self.heartbeat = Some(seconds()?),
            "connection_timeout" => self.connect_timeout = Some(seconds()?),
            "cacertfile" | "ssl_ca_certs" => self.tls.ca_certificates = Some(value.into()),
            "certfile" | "ssl_certfile" => self.tls.certificate = Some(value.into()),
            "keyfile" | "ssl_keyfile" => self.tls.key = Some(value.into()),
            "server_name_indication" => self.tls.server_name = Some(value.to_owned()),
            "auth_mechanism" => self.login = LoginMethod::parse(value)?,
            "verify" | "ssl_cert_reqs" => require_verification(value)?,
            _ => {
                return Err(format!(
                    "the query has an unknown parameter {name:?}; expected heartbeat, \
                     connection_timeout, cacertfile, certfile, keyfile, \
                     server_name_indication or auth_mechanism"
                ));
            }
        }
        Ok(())
    }

    fn read_transport_option(&mut self, name: &str, value: &Value) -> Result<(), String> {
        match name {
            "confirm_publish" => {
                self.confirms = match value.as_bool() {
                    Some(true) => PublisherConfirms::On,
                    Some(false) => PublisherConfirms::Off,
                    None => return Err(format!("expected true or false, found {value}")),
                };
            }
            "login_method" => self.login = LoginMethod::parse(&string(value)?)?,
            "client_properties" => {
                if let Some(name) = value.get("connection_name") {
                    self.connection_name = Some(string(name)?);
                }
            }
            // The other options configure py-amqp.
            _ => {}
        }
        Ok(())
    }

    fn read_use_ssl(&mut self, given: &Map<String, Value>) -> Result<(), String> {
        for (name, value) in given {
            match name.as_str() {
                "ca_certs" => self.tls.ca_certificates = Some(string(value)?.into()),
                "certfile" => self.tls.certificate = Some(string(value)?.into()),
                "keyfile" => self.tls.key = Some(string(value)?.into()),
                "server_hostname" => self.tls.server_name = Some(string(value)?),
                "cert_reqs" => {
                    require_verification(&string(value).unwrap_or_else(|_| value.to_string()))?
                }
                // The other keys are arguments of Python's ssl module.
                _ => {}
            }
        }
        for node in &mut self.nodes {
            node.encrypted = true;
        }
        Ok(())
    }
}

impl Node {
    fn read(url: &ServiceUrl) -> Result<Self, String> {
        let encrypted = url.scheme == "amqps";
        let path = url.path.strip_prefix('/').unwrap_or(&url.path);
        let or = |given: &Option<String>, default: &str| {
            given.clone().unwrap_or_else(|| default.to_owned())
        };
        let virtual_host = if path.is_empty() { "/" } else { path };
        short_string(virtual_host)?;
        Ok(Self {
            host: or(&url.host, "localhost"),
            port: url.port.unwrap_or(if encrypted { 5671 } else { 5672 }),
            user: or(&url.user, "guest"),
            password: or(&url.password, "guest"),
            virtual_host: virtual_host.to_owned(),
            encrypted,
        })
    }
}

/// Shown in logs; has no user and no password.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "amqps" } else { "amqp" };
        let Self {
            host,
            port,
            virtual_host,
            ..
        } = self;
        write!(f, "{scheme}://{host}:{port}/{virtual_host}")
    }
}

impl fmt::Debug for AmqpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpOptions")
            .field("address", &self.address)
            .field("heartbeat", &self.heartbeat)
            .field("confirms", &self.confirms)
            .finish_non_exhaustive()
    }
}

impl LoginMethod {
    fn parse(name: &str) -> Result<Self, String> {
        match name.to_ascii_uppercase().as_str() {
            "PLAIN" => Ok(Self::Plain),
            "AMQPLAIN" => Ok(Self::AmqPlain),
            "EXTERNAL" => Ok(Self::External),
            _ => Err(format!(
                "unknown login method {name:?}; expected PLAIN, AMQPLAIN or EXTERNAL"
            )),
        }
    }
}

/// Rejects the settings that would disable or weaken verification.
fn require_verification(setting: &str) -> Result<(), String> {
    let skips = [
        "none",
        "verify_none",
        "cert_none",
        "cert_optional",
        "optional",
        "0",
        "1",
    ];
    if skips.contains(&setting.to_ascii_lowercase().as_str()) {
        return Err(
            "the server's certificate is always verified; set ca_certs to the certificate of \
             its authority (in a URL: cacertfile)"
                .to_owned(),
        );
    }
    Ok(())
}

fn invalid_seconds(name: &str, value: &str) -> String {
    format!("{name} must be a number of seconds, found {value:?}")
}

fn string(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("expected a string, found {other}")),
    }
}

fn invalid(operation: &'static str, object: String, cause: String) -> ServiceError {
    ServiceError::new(ServiceErrorKind::Invalid, operation, object, cause)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(url: &str) -> Node {
        AmqpOptions::parse(url).unwrap().nodes.remove(0)
    }

    #[test]
    fn url_is_parsed_as_in_kombu() {
        for (url, virtual_host) in [
            ("amqp://h", "/"),
            ("amqp://h/", "/"),
            ("amqp://h//", "/"),
            ("amqp://h/%2f", "/"),
            ("pyamqp://h/shop", "shop"),
            ("amqp://h/a%2Fb%20c", "a/b c"),
        ] {
            assert_eq!(node(url).virtual_host, virtual_host, "{url}");
        }
        let plain = node("amqp://");
        assert_eq!((plain.host.as_str(), plain.port), ("localhost", 5672));
        assert_eq!(
            (plain.user.as_str(), plain.password.as_str()),
            ("guest", "guest")
        );
        let full = node("amqps://me:p%40ss@h.example/");
        assert_eq!((full.user.as_str(), full.password.as_str()), ("me", "p@ss"));
        assert_eq!((full.port, full.encrypted), (5671, true));
    }

    #[test]
    fn url_list_has_one_node_per_url() {
        let options = AmqpOptions::parse("amqp://a:1;amqp://b:2").unwrap();
        let hosts: Vec<_> = options
            .nodes
            .iter()
            .map(|node| (&*node.host, node.port))
            .collect();
        assert_eq!(hosts, [("a", 1), ("b", 2)]);
    }

    #[test]
    fn password_is_not_displayed() {
        let options = AmqpOptions::parse("amqp://me:secret@h/").unwrap();
        let shown = format!("{options:?} {} {}", options.address(), options.nodes[0]);
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn query_accepts_parameters_of_rabbitmq_uris() {
        let options = AmqpOptions::parse(
            "amqps://h?heartbeat=3&connection_timeout=0.5&cacertfile=ca.pem&\
             server_name_indication=rabbit",
        )
        .unwrap();
        assert_eq!(
            options.effective_connect_timeout(),
            Duration::from_millis(500)
        );
        let options = options.heartbeat(Duration::from_secs(60));
        assert_eq!(options.heartbeat_seconds(), 3, "the URL has precedence");
        assert_eq!(options.tls.ca_certificates, Some("ca.pem".into()));
        assert_eq!(options.tls.server_name.as_deref(), Some("rabbit"));
        let error = AmqpOptions::parse("amqp://h?heartbeet=3")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("heartbeet") && error.contains("heartbeat"),
            "{error}"
        );
        let error = AmqpOptions::parse("amqps://h?verify=verify_none").unwrap_err();
        assert!(error.to_string().contains("cacertfile"), "{error}");
    }

    #[test]
    fn celery_settings_are_applied() {
        let given =
            json!({"confirm_publish": false, "client_properties": {"connection_name": "me"}});
        let options = AmqpOptions::parse("amqp://h")
            .unwrap()
            .transport_options(given.as_object().unwrap())
            .unwrap()
            .use_ssl(json!({"ca_certs": "ca.pem"}).as_object().unwrap())
            .unwrap()
            .login_method("external")
            .unwrap();
        assert_eq!(options.confirms, PublisherConfirms::Off);
        assert_eq!(options.connection_name.as_deref(), Some("me"));
        assert_eq!(options.login, LoginMethod::External);
        assert!(options.nodes[0].encrypted && options.tls.ca_certificates.is_some());
        let options = AmqpOptions::parse("amqp://h").unwrap();
        let unverified = json!({"cert_reqs": "CERT_NONE"});
        let error = options
            .use_ssl(unverified.as_object().unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("always verified"), "{error}");
    }
}
