//! Builds an app from the URLs of its configuration.

use std::sync::Arc;

use celery_runtime::memory::{MemoryBackend, MemoryBroker, MemoryStore};
use celery_runtime::url::ServiceUrl;
use celery_runtime::{
    App, Broker, Config, ConfigError, ResultBackend, ResultError, SendError, Store, UpdateError,
    WorkerError,
};

/// Any error of this crate, for the `main` function of a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A task was not sent, or may not have been sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A result was not received, or the task has failed.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// A custom task state was not stored.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A worker did not start, or did not end cleanly.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Builds an app with the broker and the result backend that the configuration
/// names. The URL of a broker is a configuration, too.
///
/// `connect` opens no connection: the first operation that needs a server does.
///
/// ```
/// use celery::Config;
///
/// let app = celery::connect("memory://")?;
///
/// let config = Config::new()
///     .broker_url("memory://")
///     .result_backend("memory://");
/// let with_results = celery::connect(config)?;
/// # let _ = (app, with_results);
/// # Ok::<(), celery::Error>(())
/// ```
///
/// # Errors
///
/// When no broker is configured, or when a URL is invalid or has a scheme that
/// this build does not support; the error names the missing feature.
pub fn connect(config: impl Into<Config>) -> Result<App, Error> {
    let config = config.into();
    let broker = broker(&config)?;
    let backend = backend(&config, &broker)?;
    let mut app = App::new(broker).with_config(config);
    if let Some(backend) = backend {
        app = app.with_backend(backend);
    }
    if let Some(store) = store(app.config())? {
        app = app.with_store(store);
    }
    Ok(app)
}

const BROKER_SETTING: &str = "broker_url";
const BACKEND_SETTING: &str = "result_backend";

/// The URL schemes and their transports.
const SCHEMES: &[(&str, Transport)] = &[
    ("memory", Transport::Memory),
    ("redis", Transport::Redis),
    ("rediss", Transport::Redis),
    ("unix", Transport::Redis),
    ("redis+socket", Transport::Redis),
    ("socket", Transport::Redis),
    ("sentinel", Transport::Redis),
    ("amqp", Transport::Amqp),
    ("amqps", Transport::Amqp),
    ("pyamqp", Transport::Amqp),
    ("rpc", Transport::Rpc),
];

#[derive(Clone, Copy)]
enum Transport {
    Memory,
    Redis,
    Amqp,
    Rpc,
}

impl Transport {
    /// Returns the transport of a URL, which is the value of `setting`.
    fn of_url(setting: &'static str, url: &str) -> Result<Self, ConfigError> {
        let parsed =
            ServiceUrl::parse_list(url).map_err(|cause| ConfigError::url(setting, url, cause))?;
        let scheme = parsed.first().map_or("", |first| first.scheme.as_str());
        SCHEMES
            .iter()
            .find(|(name, _)| *name == scheme)
            .map(|(_, transport)| *transport)
            .ok_or_else(|| {
                let names: Vec<_> = SCHEMES.iter().map(|(name, _)| *name).collect();
                let cause = format!(
                    "unknown scheme {scheme:?}; the known schemes are {}",
                    names.join(", ")
                );
                ConfigError::url(setting, url, cause)
            })
    }
}

fn broker(config: &Config) -> Result<Arc<dyn Broker>, ConfigError> {
    let url = config.require_broker_url()?;
    match Transport::of_url(BROKER_SETTING, url)? {
        Transport::Memory => Ok(Arc::new(MemoryBroker::new())),
        Transport::Redis => redis_broker(BROKER_SETTING, url, config),
        Transport::Amqp => amqp_broker(BROKER_SETTING, url, config),
        Transport::Rpc => Err(ConfigError::url(
            BROKER_SETTING,
            url,
            "rpc:// is a result backend; set broker_url to the URL of a broker",
        )),
    }
}

fn backend(
    config: &Config,
    broker: &Arc<dyn Broker>,
) -> Result<Option<Arc<dyn ResultBackend>>, ConfigError> {
    let Some(url) = config.result_backend_url() else {
        return Ok(None);
    };
    // Celery has the value "disabled" for no result backend.
    if url.starts_with("disabled") {
        return Ok(None);
    }
    match Transport::of_url(BACKEND_SETTING, url)? {
        Transport::Memory => Ok(Some(Arc::new(MemoryBackend::new()))),
        Transport::Redis => redis_backend(BACKEND_SETTING, url, config).map(Some),
        Transport::Rpc => rpc_backend(BACKEND_SETTING, url, config, broker).map(Some),
        Transport::Amqp => Err(ConfigError::url(
            BACKEND_SETTING,
            url,
            "RabbitMQ is no result backend by this scheme; use rpc://",
        )),
    }
}

/// Returns the store for locks and durable revocations: on the server of the
/// result backend, or else on that of the broker. RabbitMQ has none.
fn store(config: &Config) -> Result<Option<Arc<dyn Store>>, ConfigError> {
    let candidates = [
        (BACKEND_SETTING, config.result_backend_url()),
        (BROKER_SETTING, config.require_broker_url().ok()),
    ];
    for (setting, url) in candidates {
        let Some(url) = url else { continue };
        match Transport::of_url(setting, url)? {
            Transport::Redis => return redis_store(setting, url, config).map(Some),
            Transport::Memory => return Ok(Some(Arc::new(MemoryStore::new()))),
            Transport::Amqp | Transport::Rpc => {}
        }
    }
    Ok(None)
}

#[cfg(feature = "redis")]
fn redis_broker(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    let options = redis_broker_options(setting, url, config)?;
    Ok(Arc::new(celery_broker_redis::RedisBroker::new(options)))
}

#[cfg(feature = "redis")]
fn redis_backend(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    let value = config
        .result_backend_transport_options()
        .get(CHORD_ORDERED)
        .filter(|value| !value.is_null());
    let ordered = value.map_or(Some(true), |value| value.as_bool());
    let ordered = ordered.ok_or_else(|| {
        let cause = format!("the transport option {CHORD_ORDERED} must be true or false");
        ConfigError::url(setting, url, cause)
    })?;
    let options = redis_backend_options(setting, url, config)?;
    let backend = celery_backend_redis::RedisBackend::new(options)
        .result_expires(config.result_expires())
        .result_chord_expires(config.result_chord_expires())
        .result_chord_ordered(ordered)
        .serializer(config.result_serializer());
    Ok(Arc::new(backend))
}

/// The only transport option of result backends that is not about the connection.
#[cfg(feature = "redis")]
const CHORD_ORDERED: &str = "result_chord_ordered";

#[cfg(feature = "redis")]
fn redis_store(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn Store>, ConfigError> {
    let options = if setting == BACKEND_SETTING {
        redis_backend_options(setting, url, config)?
    } else {
        redis_broker_options(setting, url, config)?
    };
    Ok(Arc::new(celery_backend_redis::RedisStore::new(options)))
}

#[cfg(feature = "redis")]
fn redis_broker_options(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<celery_broker_redis::RedisOptions, ConfigError> {
    celery_broker_redis::RedisOptions::parse(url, config.broker_transport_options())
        .map_err(|error| ConfigError::url(setting, url, error.to_string()))
}

#[cfg(feature = "redis")]
fn redis_backend_options(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<celery_broker_redis::RedisOptions, ConfigError> {
    let mut transport_options = config.result_backend_transport_options().clone();
    transport_options.remove(CHORD_ORDERED);
    celery_broker_redis::RedisOptions::parse(url, &transport_options)
        .map_err(|error| ConfigError::url(setting, url, error.to_string()))
}

#[cfg(not(feature = "redis"))]
const NO_REDIS: &str =
    "this build does not support Redis; enable the feature `redis` of the crate `celery`";

#[cfg(not(feature = "redis"))]
fn redis_broker(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    Err(ConfigError::url(setting, url, NO_REDIS))
}

#[cfg(not(feature = "redis"))]
fn redis_backend(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    Err(ConfigError::url(setting, url, NO_REDIS))
}

#[cfg(not(feature = "redis"))]
fn redis_store(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn Store>, ConfigError> {
    Err(ConfigError::url(setting, url, NO_REDIS))
}

#[cfg(feature = "amqp")]
fn amqp_broker(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    let options = amqp_options(url, config)
        .map_err(|error| ConfigError::url(setting, url, error.to_string()))?;
    Ok(Arc::new(celery_broker_amqp::AmqpBroker::new(options)))
}

#[cfg(feature = "amqp")]
fn amqp_options(
    url: &str,
    config: &Config,
) -> Result<celery_broker_amqp::AmqpOptions, celery_runtime::ServiceError> {
    let mut options = celery_broker_amqp::AmqpOptions::parse(url)?
        .transport_options(config.broker_transport_options())?
        .heartbeat(config.broker_heartbeat().unwrap_or_default())
        .connect_timeout(config.broker_connection_timeout())
        .delayed_queue_type(config.broker_native_delayed_delivery_queue_type());
    if let Some(method) = config.broker_login_method() {
        options = options.login_method(method)?;
    }
    if let Some(tls) = config.broker_use_ssl() {
        options = options.use_ssl(tls)?;
    }
    Ok(options)
}

#[cfg(not(feature = "amqp"))]
fn amqp_broker(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    const NO_AMQP: &str =
        "this build does not support RabbitMQ; enable the feature `amqp` of the crate `celery`";
    Err(ConfigError::url(setting, url, NO_AMQP))
}

#[cfg(feature = "rpc")]
fn rpc_backend(
    _setting: &'static str,
    _url: &str,
    config: &Config,
    broker: &Arc<dyn Broker>,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    let mut backend = celery_broker_amqp::RpcBackend::new(Arc::clone(broker))
        .result_expires(config.result_expires())
        .serializer(config.result_serializer());
    if config.result_persistent() {
        backend = backend.persistent();
    }
    Ok(Arc::new(backend))
}

#[cfg(not(feature = "rpc"))]
fn rpc_backend(
    setting: &'static str,
    url: &str,
    _config: &Config,
    _broker: &Arc<dyn Broker>,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    const NO_RPC: &str =
        "this build does not support rpc results; enable the feature `rpc` of the crate `celery`";
    Err(ConfigError::url(setting, url, NO_RPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_error(config: impl Into<Config>) -> String {
        connect(config).unwrap_err().to_string()
    }

    #[test]
    fn unknown_scheme_error_lists_known_schemes() {
        let error = connect_error("reddis://localhost");
        assert!(error.contains("unknown scheme \"reddis\""), "{error}");
        assert!(error.contains("rediss"), "{error}");
    }

    #[test]
    fn error_of_url_hides_password() {
        let error = connect_error("reddis://user:secret@localhost");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn missing_url_error_names_environment_variable() {
        let error = connect_error(Config::new());
        assert!(error.contains("CELERY_BROKER_URL"), "{error}");
    }

    #[cfg(feature = "amqp")]
    #[test]
    fn rabbitmq_is_a_broker_and_rpc_its_backend() {
        let config = Config::new()
            .broker_url("amqp://localhost")
            .result_backend("rpc://");
        #[cfg(feature = "rpc")]
        assert!(connect(config).unwrap().backend().is_some());
        #[cfg(not(feature = "rpc"))]
        assert!(connect_error(config).contains("feature `rpc`"));
        let error = connect_error("amqp://localhost?heartbeet=1");
        assert!(error.contains("heartbeet"), "{error}");
        let amqp_backend = Config::new()
            .broker_url("amqp://localhost")
            .result_backend("amqp://localhost");
        assert!(connect_error(amqp_backend).contains("rpc://"));
    }

    #[cfg(not(feature = "amqp"))]
    #[test]
    fn missing_amqp_feature_is_named() {
        let error = connect_error("amqp://localhost");
        assert!(error.contains("feature `amqp`"), "{error}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn result_chord_ordered_is_an_option_of_the_backend() {
        let with = |ordered: serde_json::Value| {
            let options = serde_json::json!({"result_chord_ordered": ordered, "master_name": "m"});
            Config::new()
                .broker_url("memory://")
                .result_backend("sentinel://localhost/1")
                .set("result_backend_transport_options", options)
                .unwrap()
        };
        for ordered in [false.into(), true.into(), serde_json::Value::Null] {
            assert!(connect(with(ordered)).unwrap().backend().is_some());
        }
        let error = connect_error(with("no".into()));
        assert!(error.contains("result_chord_ordered"), "{error}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn missing_redis_feature_is_named() {
        let error = connect_error("redis://localhost");
        assert!(error.contains("feature `redis`"), "{error}");
    }
}
