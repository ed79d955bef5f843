//! Reading settings from code, files and the environment: [`ConfigError`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::Config;
use crate::config::settings::{Setting, SettingValue, find, nearest};

/// An error in the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No setting has this name.
    #[error("cannot set {name:?}: there is no such setting; did you mean {nearest:?}?")]
    Unknown {
        /// The given name.
        name: String,
        /// The setting with the most similar name.
        nearest: &'static str,
    },
    /// The value does not fit the setting.
    #[error("cannot set {name}: {cause}")]
    Value {
        /// The setting.
        name: String,
        /// The reason, such as the expected form.
        cause: String,
    },
    /// Unique tasks or durable revocations are used without a
    /// [`Store`](crate::Store).
    #[error(
        "unique tasks and `worker_durable_revokes` need a store that the workers share, and there \
         is none: use Redis as broker or result backend, or give one to `App::with_store`"
    )]
    NoStore,
    /// A required setting is missing.
    #[error(
        "{name} is not set: give it in code, in a configuration file, or as {} in the environment",
        env_name(.name)
    )]
    Missing {
        /// The setting.
        name: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read configuration file {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        cause: String,
    },
    /// A URL cannot be parsed, or this build does not support its scheme.
    #[error("cannot use {url:?} as {setting}: {cause}")]
    Url {
        /// The setting that has the URL.
        setting: &'static str,
        /// The URL, without its password.
        url: String,
        /// The reason and the remedy.
        cause: String,
    },
}

impl ConfigError {
    pub(crate) fn missing(name: &'static str) -> Self {
        Self::Missing { name }
    }

    /// An error of a URL, which is stored without its password.
    pub fn url(setting: &'static str, url: &str, cause: impl Into<String>) -> Self {
        Self::Url {
            setting,
            url: crate::config::url::redacted(url),
            cause: cause.into(),
        }
    }
}

impl Config {
    /// Sets one of Celery's settings by its name.
    ///
    /// # Errors
    ///
    /// When no setting has this name, or the value has the wrong form.
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Result<Self, ConfigError> {
        self.apply(name, &value.into())?;
        Ok(self)
    }

    /// Reads a TOML or JSON file, by its extension: a table with Celery's names of
    /// settings, on top of the defaults.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or contains a setting that does not exist or a
    /// value of the wrong form.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::new().with_file(path)
    }

    /// Reads a file as [`from_file`](Self::from_file) does, on top of these settings.
    ///
    /// # Errors
    ///
    /// The errors of [`from_file`](Self::from_file).
    pub fn with_file(mut self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let failed = |cause: String| ConfigError::File {
            path: path.to_owned(),
            cause,
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let settings: serde_json::Map<String, Value> = match extension {
            Some("toml") => toml::from_str(&text).map_err(|error| failed(error.to_string()))?,
            Some("json") => {
                serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?
            }
            _ => return Err(failed("expected the extension .toml or .json".to_owned())),
        };
        for (name, value) in &settings {
            self.apply(name, value)?;
        }
        Ok(self)
    }

    /// Reads the environment variables `CELERY_` plus the name of a setting in upper
    /// case, on top of the defaults.
    ///
    /// A variable with this prefix that is no setting is logged as a warning, since
    /// other programs use the prefix, too.
    ///
    /// # Errors
    ///
    /// When a value has the wrong form for its setting.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::new().with_env()
    }

    /// Reads the environment as [`from_env`](Self::from_env) does, on top of these
    /// settings.
    ///
    /// # Errors
    ///
    /// The errors of [`from_env`](Self::from_env).
    pub fn with_env(self) -> Result<Self, ConfigError> {
        self.with_variables(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Reads environment variables from an iterator.
    pub(crate) fn with_variables(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        for (variable, text) in variables {
            let Some(name) = variable.strip_prefix("CELERY_") else {
                continue;
            };
            let name = name.to_ascii_lowercase();
            match find(&name) {
                Some(setting) => self.apply_setting(setting, &Value::String(text))?,
                None => tracing::warn!(
                    "config: environment variable {variable} is not a setting; did you mean {}?",
                    env_name(nearest(&name))
                ),
            }
        }
        Ok(self)
    }

    fn apply(&mut self, name: &str, value: &Value) -> Result<(), ConfigError> {
        let setting = find(name).ok_or_else(|| ConfigError::Unknown {
            name: name.to_owned(),
            nearest: nearest(name),
        })?;
        self.apply_setting(setting, value)
    }

    fn apply_setting(&mut self, setting: &Setting, value: &Value) -> Result<(), ConfigError> {
        let Some(set) = setting.setter else {
            tracing::warn!("setting {} has no effect in this version", setting.name);
            return Ok(());
        };
        set(self, SettingValue(value)).map_err(|cause| ConfigError::Value {
            name: setting.name.to_owned(),
            cause,
        })
    }
}

fn env_name(setting: &str) -> String {
    format!("CELERY_{}", setting.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{OnUnknown, QueueType};

    fn env(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::new().with_variables(
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn environment_variables_are_read_as_text() {
        let config = env(&[
            ("CELERY_BROKER_URL", "redis://h/1"),
            ("CELERY_TASK_ACKS_LATE", "1"),
            ("CELERY_WORKER_PREFETCH_MULTIPLIER", "1"),
            (
                "CELERY_BROKER_TRANSPORT_OPTIONS",
                r#"{"visibility_timeout": 5}"#,
            ),
            ("CELERY_TASK_ROUTES", r#"{"a.*": "slow"}"#),
            ("CELERY_ACCEPT_CONTENT", "json,yaml"),
            ("CELERY_TASK_TIME_LIMIT", "2.5"),
            ("CELERY_ON_UNKNOWN", "requeue:3"),
            ("CELERY_SOMETHING_ELSE", "ignored with a warning"),
            ("PATH", "without the prefix"),
        ])
        .unwrap();
        assert_eq!(config.broker_url.as_deref(), Some("redis://h/1"));
        assert_eq!(config.task.acks_late, Some(true));
        assert_eq!(config.worker_prefetch_multiplier, 1);
        assert_eq!(config.broker_transport_options["visibility_timeout"], 5);
        assert_eq!(config.task.time_limit, Some(Duration::from_millis(2500)));
        assert_eq!(
            config.on_unknown,
            OnUnknown::Requeue(Duration::from_secs(3))
        );
    }

    #[test]
    fn rabbitmq_connection_settings_have_defaults_and_are_read() {
        let plain = Config::new();
        assert_eq!(plain.broker_heartbeat(), Some(Duration::from_secs(10)));
        assert_eq!(plain.broker_connection_timeout(), Duration::from_secs(4));
        assert_eq!(plain.broker_use_ssl(), None);
        assert!(!plain.result_persistent());
        let delayed = plain.broker_native_delayed_delivery_queue_type();
        assert_eq!(delayed, QueueType::Quorum);

        let config = env(&[
            ("CELERY_BROKER_HEARTBEAT", "0"),
            ("CELERY_BROKER_LOGIN_METHOD", "EXTERNAL"),
            ("CELERY_BROKER_USE_SSL", r#"{"ca_certs": "/ca.pem"}"#),
            (
                "CELERY_BROKER_NATIVE_DELAYED_DELIVERY_QUEUE_TYPE",
                "classic",
            ),
            ("CELERY_RESULT_PERSISTENT", "true"),
            ("CELERY_WORKER_DETECT_QUORUM_QUEUES", "false"),
        ])
        .unwrap();
        assert_eq!(config.broker_heartbeat(), None);
        assert_eq!(config.broker_login_method(), Some("EXTERNAL"));
        assert_eq!(config.broker_use_ssl().unwrap()["ca_certs"], "/ca.pem");
        assert!(config.result_persistent());
        let delayed = config.broker_native_delayed_delivery_queue_type();
        assert_eq!(delayed, QueueType::Classic);

        let ssl = |value: Value| {
            let config = Config::new().set("broker_use_ssl", value).unwrap();
            config.broker_use_ssl().map(serde_json::Map::len)
        };
        assert_eq!(ssl(true.into()), Some(0));
        assert_eq!(ssl(false.into()), None);
        assert_eq!(ssl(Value::Null), None);
    }

    #[test]
    fn child_process_limits_are_read() {
        let plain = Config::new();
        assert_eq!(plain.worker_max_tasks_per_child(), None);
        assert_eq!(plain.worker_max_memory_per_child(), None);
        let config = env(&[
            ("CELERY_WORKER_MAX_TASKS_PER_CHILD", "10"),
            ("CELERY_WORKER_MAX_MEMORY_PER_CHILD", "200000"),
        ])
        .unwrap();
        assert_eq!(config.worker_max_tasks_per_child(), Some(10));
        assert_eq!(config.worker_max_memory_per_child(), Some(200_000));
        let config = config.set("worker_max_tasks_per_child", 0).unwrap();
        assert_eq!(config.worker_max_tasks_per_child(), None);
    }

    #[test]
    fn list_of_urls_is_joined() {
        let urls = serde_json::json!(["amqp://a", "amqp://b"]);
        let config = Config::new().set("broker_url", urls).unwrap();
        assert_eq!(config.require_broker_url().unwrap(), "amqp://a;amqp://b");
    }

    #[test]
    fn task_queues_are_read_from_environment() {
        for text in ["a, b", r#"["a", "b"]"#, r#"{"a": {}, "b": {}}"#] {
            let config = env(&[("CELERY_TASK_QUEUES", text)]).unwrap();
            let names = config.queues.listed.iter().map(|listed| &listed.queue.name);
            assert_eq!(names.collect::<Vec<_>>(), ["a", "b"], "{text}");
        }
        let error = env(&[("CELERY_TASK_QUEUES", r#"{"a": {"dureable": true}}"#)]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("task_queues") && error.contains("dureable"),
            "{error}"
        );
    }

    #[test]
    fn unknown_setting_names_nearest() {
        let error = Config::new().set("broker_ulr", "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set \"broker_ulr\": there is no such setting; did you mean \"broker_url\"?"
        );
    }

    #[test]
    fn wrong_value_names_expected_form() {
        let error = env(&[("CELERY_WORKER_CONCURRENCY", "many")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set worker_concurrency: expected a number that is not negative, found \"many\""
        );
    }

    #[test]
    fn file_is_read_by_extension_and_later_value_wins() {
        let folder = std::env::temp_dir().join(format!("celery-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let toml = folder.join("celery.toml");
        std::fs::write(
            &toml,
            "task_default_queue = \"files\"\nresult_expires = 60\n",
        )
        .unwrap();
        let config = Config::from_file(&toml)
            .unwrap()
            .set("result_expires", 0)
            .unwrap();
        assert_eq!(config.queues.default_queue, "files");
        assert_eq!(config.result_expires, None);

        let json = folder.join("celery.json");
        std::fs::write(&json, r#"{"task_defualt_queue": "x"}"#).unwrap();
        let error = Config::from_file(&json).unwrap_err().to_string();
        assert!(error.contains("task_default_queue"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn chord_settings_have_celerys_defaults_and_are_read() {
        let config = Config::new();
        assert_eq!(config.result_chord_expires(), None);
        assert_eq!(
            config.result_chord_join_timeout,
            Some(Duration::from_secs(3))
        );
        assert_eq!(config.result_chord_retry_interval, Duration::from_secs(1));
        assert!(!config.task_allow_error_cb_on_chord_header);
        let config = env(&[
            ("CELERY_RESULT_CHORD_EXPIRES", "0"),
            ("CELERY_RESULT_CHORD_JOIN_TIMEOUT", "none"),
            ("CELERY_RESULT_CHORD_RETRY_INTERVAL", "0.5"),
            ("CELERY_TASK_ALLOW_ERROR_CB_ON_CHORD_HEADER", "true"),
        ])
        .unwrap();
        assert_eq!(config.result_chord_expires(), Some(Duration::ZERO));
        assert_eq!(config.result_chord_join_timeout, None);
        let interval = config.result_chord_retry_interval;
        assert_eq!(interval, Duration::from_millis(500));
        assert!(config.task_allow_error_cb_on_chord_header);
    }

    #[test]
    fn missing_setting_names_environment_variable() {
        let error = Config::new().require_broker_url().unwrap_err().to_string();
        assert!(error.contains("CELERY_BROKER_URL"), "{error}");
    }
}
