//! From URLs to broker and result backend.

use std::sync::Arc;

use celery_runtime::memory::{MemoryBackend, MemoryBroker, MemoryStore};
use celery_runtime::url::ServiceUrl;
use celery_runtime::{
    App, Broker, Config, ConfigError, ResultBackend, ResultError, SendError, Store, UpdateError,
    WorkerError,
};

/// Anything that a program using Celery can fail with, for its `main`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A task was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A result could not be had.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// A progress report was not stored.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A worker could not start or did not end cleanly.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// An app on the broker, and the result backend if there is one, that the
/// configuration names; a broker's URL alone will do.
///
/// Nothing is connected here: the first call that needs a server does that.
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
/// When no broker is named, or a URL cannot be read or is of a kind that this
/// build does not know; the error names the feature that is missing.
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

/// What workers and clients agree on is kept where the results are, or else
/// where the broker is.
fn store(config: &Config) -> Result<Option<Arc<dyn Store>>, ConfigError> {
    let places = [
        (BACKEND_SETTING, config.result_backend_url()),
        (BROKER_SETTING, config.require_broker_url().ok()),
    ];
    for (setting, url) in places {
        let Some(url) = url else { continue };
        match kind(setting, url)? {
            Kind::Redis => return redis_store(setting, url, config).map(Some),
            Kind::Memory => return Ok(Some(Arc::new(MemoryStore::new()))),
            Kind::Amqp | Kind::Rpc => {}
        }
    }
    Ok(None)
}

const BROKER_SETTING: &str = "broker_url";
const BACKEND_SETTING: &str = "result_backend";

/// The kinds of URL, and the feature that each needs.
const KINDS: &[(&str, Kind)] = &[
    ("memory", Kind::Memory),
    ("redis", Kind::Redis),
    ("rediss", Kind::Redis),
    ("unix", Kind::Redis),
    ("redis+socket", Kind::Redis),
    ("socket", Kind::Redis),
    ("sentinel", Kind::Redis),
    ("amqp", Kind::Amqp),
    ("amqps", Kind::Amqp),
    ("pyamqp", Kind::Amqp),
    ("rpc", Kind::Rpc),
];

#[derive(Clone, Copy)]
enum Kind {
    Memory,
    Redis,
    Amqp,
    Rpc,
}

fn kind(setting: &'static str, url: &str) -> Result<Kind, ConfigError> {
    let parsed =
        ServiceUrl::parse_list(url).map_err(|cause| ConfigError::url(setting, url, cause))?;
    let scheme = parsed.first().map_or("", |first| first.scheme.as_str());
    KINDS
        .iter()
        .find(|(name, _)| *name == scheme)
        .map(|(_, kind)| *kind)
        .ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
            let cause = format!("unknown scheme {scheme:?}; there are {}", names.join(", "));
            ConfigError::url(setting, url, cause)
        })
}

fn broker(config: &Config) -> Result<Arc<dyn Broker>, ConfigError> {
    const SETTING: &str = "broker_url";
    let url = config.require_broker_url()?;
    match kind(SETTING, url)? {
        Kind::Memory => Ok(Arc::new(MemoryBroker::new())),
        Kind::Redis => redis_broker(SETTING, url, config),
        Kind::Amqp => amqp_broker(SETTING, url, config),
        Kind::Rpc => Err(ConfigError::url(
            SETTING,
            url,
            "rpc:// is a result backend; a broker is needed beside it",
        )),
    }
}

fn backend(
    config: &Config,
    broker: &Arc<dyn Broker>,
) -> Result<Option<Arc<dyn ResultBackend>>, ConfigError> {
    const SETTING: &str = "result_backend";
    let Some(url) = config.result_backend_url() else {
        return Ok(None);
    };
    // Celery writes "disabled" for none.
    if url.starts_with("disabled") {
        return Ok(None);
    }
    match kind(SETTING, url)? {
        Kind::Memory => Ok(Some(Arc::new(MemoryBackend::new()))),
        Kind::Redis => redis_backend(SETTING, url, config).map(Some),
        Kind::Rpc => rpc_backend(SETTING, url, config, broker).map(Some),
        Kind::Amqp => Err(ConfigError::url(
            SETTING,
            url,
            "results come back over RabbitMQ with rpc://",
        )),
    }
}

#[cfg(feature = "redis")]
fn redis_broker(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    let options = broker_options(setting, url, config)?;
    Ok(Arc::new(celery_broker_redis::RedisBroker::new(options)))
}

#[cfg(feature = "redis")]
fn redis_backend(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    let given = config
        .result_backend_transport_options()
        .get(CHORD_ORDERED)
        .filter(|given| !given.is_null());
    let ordered = given.map_or(Some(true), |given| given.as_bool());
    let ordered = ordered.ok_or_else(|| {
        let cause = format!("the transport option {CHORD_ORDERED} is true or false");
        ConfigError::url(setting, url, cause)
    })?;
    let backend = celery_backend_redis::RedisBackend::new(results_options(setting, url, config)?)
        .result_expires(config.result_expires())
        .result_chord_expires(config.result_chord_expires())
        .result_chord_ordered(ordered)
        .serializer(config.result_serializer());
    Ok(Arc::new(backend))
}

/// The one among the options for results that is not about the connection.
#[cfg(feature = "redis")]
const CHORD_ORDERED: &str = "result_chord_ordered";

#[cfg(feature = "redis")]
fn results_options(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<celery_broker_redis::RedisOptions, ConfigError> {
    let mut transport = config.result_backend_transport_options().clone();
    transport.remove(CHORD_ORDERED);
    celery_broker_redis::RedisOptions::parse(url, &transport)
        .map_err(|error| ConfigError::url(setting, url, error.to_string()))
}

#[cfg(feature = "redis")]
fn broker_options(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<celery_broker_redis::RedisOptions, ConfigError> {
    celery_broker_redis::RedisOptions::parse(url, config.broker_transport_options())
        .map_err(|error| ConfigError::url(setting, url, error.to_string()))
}

#[cfg(feature = "redis")]
fn redis_store(
    setting: &'static str,
    url: &str,
    config: &Config,
) -> Result<Arc<dyn Store>, ConfigError> {
    let options = match setting {
        BACKEND_SETTING => results_options(setting, url, config),
        _ => broker_options(setting, url, config),
    };
    Ok(Arc::new(celery_backend_redis::RedisStore::new(options?)))
}

#[cfg(not(feature = "redis"))]
fn redis_store(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn Store>, ConfigError> {
    Err(ConfigError::url(setting, url, REDIS))
}

#[cfg(not(feature = "redis"))]
const REDIS: &str = "this build has no Redis; switch on the feature `redis` of the crate `celery`";

#[cfg(not(feature = "redis"))]
fn redis_broker(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn Broker>, ConfigError> {
    Err(ConfigError::url(setting, url, REDIS))
}

#[cfg(not(feature = "redis"))]
fn redis_backend(
    setting: &'static str,
    url: &str,
    _config: &Config,
) -> Result<Arc<dyn ResultBackend>, ConfigError> {
    Err(ConfigError::url(setting, url, REDIS))
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
    const AMQP: &str =
        "this build has no RabbitMQ; switch on the feature `amqp` of the crate `celery`";
    Err(ConfigError::url(setting, url, AMQP))
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
    const RPC: &str =
        "this build has no rpc results; switch on the feature `rpc` of the crate `celery`";
    Err(ConfigError::url(setting, url, RPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: impl Into<Config>) -> String {
        connect(config).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let error = refusal("reddis://localhost");
        assert!(error.contains("unknown scheme \"reddis\""), "{error}");
        assert!(error.contains("rediss"), "{error}");
    }

    #[test]
    fn errors_leave_the_password_out() {
        let error = refusal("reddis://user:secret@localhost");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn no_url_says_where_to_set_one() {
        let error = refusal(Config::new());
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
        assert!(refusal(config).contains("feature `rpc`"));
        let error = refusal("amqp://localhost?heartbeet=1");
        assert!(error.contains("heartbeet"), "{error}");
        let swapped = Config::new()
            .broker_url("amqp://localhost")
            .result_backend("amqp://localhost");
        assert!(refusal(swapped).contains("rpc://"));
    }

    #[cfg(not(feature = "amqp"))]
    #[test]
    fn a_build_without_rabbitmq_says_so() {
        let error = refusal("amqp://localhost");
        assert!(error.contains("feature `amqp`"), "{error}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn whether_chords_are_ordered_is_an_option_of_results() {
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
        let error = refusal(with("no".into()));
        assert!(error.contains("result_chord_ordered"), "{error}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_missing_feature_is_named() {
        let error = refusal("redis://localhost");
        assert!(error.contains("feature `redis`"), "{error}");
    }
}
