//! From a [`Worker`] to its [`Driver`]: one function for each component.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use crate::boundary::{ConsumeOptions, Mailbox, Queue};
use crate::client::Client;
use crate::client::compose::Sender;
use crate::config::{Config, ConfigError};
use crate::env;
use crate::execution::{BlockingPool, Registry, WorkerContext};
use crate::task::RateLimit;
use crate::worker::Worker;
use crate::worker::core::elections::Elections;
use crate::worker::core::queue_selection::select_queues;
use crate::worker::core::rate_limits::RateLimits;
use crate::worker::core::revocations::Revocations;
use crate::worker::core::shutdown::{Shutdown, ShutdownOptions};
use crate::worker::core::slots::Slots;
use crate::worker::core::window::Window;
use crate::worker::delivery::decode::MessageDecoder;
use crate::worker::delivery::in_flight::InFlight;
use crate::worker::driver::Driver;
use crate::worker::driver::pool::Pool;
use crate::worker::effects::executor::EffectExecutor;
use crate::worker::effects::messages::MessageFactory;
use crate::worker::error::WorkerError;
use crate::worker::io::connection::Connection;
use crate::worker::io::control_receiver::{
    ControlReceiver, MessageReader, read_events, read_request,
};
use crate::worker::io::event_dispatcher::EventDispatcher;
use crate::worker::io::event_publisher::EventPublisher;
use crate::worker::io::mingle;
use crate::worker::io::monitor::Monitor;
use crate::worker::io::remote::{Mingle, Remote};
use crate::worker::io::supervisor::{Failures, Supervisor};
use crate::worker::isolated::{self, Children};

impl Worker {
    /// Starts the components and returns the driver that owns them.
    pub(super) fn start(mut self, children: Option<&Arc<Children>>) -> Result<Driver, WorkerError> {
        let config = self.effective_config();
        let tasks = std::mem::take(&mut self.tasks);
        let registry = Registry::new(tasks, children.map(isolated::runner).as_ref())?;
        let registry = Arc::new(registry);
        let queues = self.consumed_queues(&config, &registry)?;
        self.require_store(&registry)?;
        let context = self.context(&config, &registry);
        let executor = Arc::new(self.executor(&config, &context, &queues));
        let pool = Pool::start(
            self.settings.blocked_after,
            Arc::clone(&context),
            children.cloned(),
            self.concurrency,
        );
        let events = self.event_dispatcher(&config);
        let (control, mingle) = self.control_receiver(&config);
        let now = self.app.clock.moment();
        let (max, expires) = (self.settings.revokes_max, self.settings.revoke_expires);
        let rates = self.rate_limits(&registry, now.instant);
        let elections = Elections::new(&self.hostname, std::process::id());
        let mut driver = Driver {
            now,
            decoder: self.decoder(&config, registry, context),
            connection: Connection::new(
                self.supervisor(&config, &queues),
                config.operation_timeout,
            ),
            in_flight: InFlight::default(),
            window: self.window(),
            slots: Slots::new(self.concurrency, self.autoscale),
            rates,
            revocations: Revocations::new(max, expires, now.instant),
            shutdown: self.shutdown(),
            monitor: Monitor::new(
                events,
                self.app.logical_clock.clone(),
                self.settings.heartbeat,
                now.instant,
            ),
            remote: Remote::new(control, mingle, self.commands, elections),
            pool,
            futures: FuturesUnordered::new(),
            settlements: Vec::new(),
            executor,
            settings: Arc::new(self.settings),
        };
        driver.prepare();
        Ok(driver)
    }

    /// The app's settings with those that the builder changed.
    fn effective_config(&self) -> Arc<Config> {
        let mut config = (*self.app.config).clone();
        config.on_unknown = self.on_unknown;
        Arc::new(config)
    }

    fn consumed_queues(
        &self,
        config: &Config,
        registry: &Registry,
    ) -> Result<Vec<Arc<Queue>>, WorkerError> {
        let mut queues = select_queues(&self.app.queues, &self.queues, registry)?;
        if config.worker_direct {
            queues.push(self.app.queues.direct(&self.hostname));
        }
        let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        tracing::info!("{} consumes {}", self.hostname, names.join(", "));
        Ok(queues)
    }

    /// Durable revocations and unique tasks need a store.
    fn require_store(&self, registry: &Registry) -> Result<(), WorkerError> {
        let mut tasks = registry.iter();
        let needs_store = self.settings.durable_revokes.is_some()
            || tasks.any(|task| task.declaration.options.unique.is_some());
        if needs_store && self.app.store.is_none() {
            return Err(ConfigError::NoStore.into());
        }
        Ok(())
    }

    fn context(&self, config: &Config, registry: &Arc<Registry>) -> Arc<WorkerContext> {
        Arc::new(WorkerContext {
            store: self.app.store.clone(),
            backend: self.app.backend.clone(),
            hostname: self.hostname.clone(),
            accept: config.accept_content,
            body_limit: config.body_limit,
            result_serializer: config.result_serializer,
            result_extended: config.result_extended,
            blocking: BlockingPool::new(self.concurrency),
            client: Client::new(&self.app),
            registry: Arc::clone(registry),
            chord_retry_interval: config.result_chord_retry_interval,
        })
    }

    fn executor(
        &self,
        config: &Arc<Config>,
        context: &Arc<WorkerContext>,
        queues: &[Arc<Queue>],
    ) -> EffectExecutor {
        let messages = MessageFactory {
            sender: Sender {
                config: Arc::clone(config),
                queues: Arc::clone(&self.app.queues),
                origin: self.hostname.clone(),
                reply_to: env::uuid(),
            },
            hostname: self.hostname.clone(),
            queues: queues.to_vec(),
        };
        EffectExecutor {
            broker: Arc::clone(&self.app.broker),
            context: Arc::clone(context),
            messages,
            deadline: config.operation_timeout,
            join_timeout: config.result_chord_join_timeout,
            clock: self.app.clock.clone(),
        }
    }

    fn decoder(
        &self,
        config: &Config,
        registry: Arc<Registry>,
        context: Arc<WorkerContext>,
    ) -> MessageDecoder {
        let mut defaults = config.task;
        let both = defaults.acks_on_failure;
        defaults.acks_on_timeout = defaults.acks_on_timeout.or(both);
        defaults.acks_on_failure = config.task_acks_on_failure.or(both);
        MessageDecoder {
            registry,
            context,
            defaults,
            emits_events: self.settings.task_events,
            deduplicates: self.settings.deduplicate,
            durable_revokes: self.settings.durable_revokes.is_some(),
            time_limits: HashMap::new(),
        }
    }

    /// The rate limits of declarations and settings.
    fn rate_limits(&self, registry: &Registry, now: Instant) -> RateLimits {
        let mut limits = RateLimits::default();
        if self.settings.disable_rate_limits {
            return limits;
        }
        let default = self.settings.default_rate_limit.as_deref();
        for task in registry.iter() {
            let Some(text) = task.declaration.options.rate_limit.or(default) else {
                continue;
            };
            match RateLimit::parse(text) {
                Ok(limit) => limits.set(&task.name, text, limit, now),
                Err(cause) => tracing::error!(
                    "task {} has no rate limit: cannot read {text:?}: {cause}",
                    task.name
                ),
            }
        }
        limits
    }

    fn shutdown(&self) -> Shutdown {
        Shutdown::new(ShutdownOptions {
            grace: self.grace,
            restore: self.app.config.operation_timeout,
            soft_timeout: self.settings.soft_shutdown_timeout,
            soft_on_idle: self.settings.soft_shutdown_on_idle,
        })
    }

    fn window(&self) -> Window {
        Window::new(if self.settings.disable_prefetch {
            1
        } else {
            self.prefetch_multiplier
        })
    }

    fn supervisor(&mut self, config: &Config, queues: &[Arc<Queue>]) -> Supervisor {
        let queues = queues.iter().map(|queue| (**queue).clone());
        Supervisor {
            broker: Arc::clone(&self.app.broker),
            options: ConsumeOptions::new(queues.collect(), 0),
            max_retries: config.broker_connection_max_retries,
            hook: self.hook.take(),
            failures: Failures::default(),
        }
    }

    fn event_dispatcher(&self, config: &Config) -> EventDispatcher {
        let broker = Arc::clone(&self.app.broker);
        let publisher = EventPublisher::start(broker, config.operation_timeout);
        EventDispatcher::new(
            publisher,
            self.app.logical_clock.clone(),
            &self.hostname,
            config.events.exchange(),
        )
    }

    /// The receiver of commands, and the question to the peers. The receiver
    /// opens its mailboxes once the question is sent; otherwise the worker would
    /// answer itself.
    fn control_receiver(&self, config: &Config) -> (ControlReceiver, Option<Mingle>) {
        let is_enabled = self.settings.remote_control;
        let mailboxes = if is_enabled {
            mailboxes(config, &self.hostname)
        } else {
            Vec::new()
        };
        let (asked, begin) = oneshot::channel();
        let control = ControlReceiver::start(&self.app.broker, mailboxes, begin);
        let mingle = (is_enabled && self.settings.mingle).then(|| {
            mingle::send_hello(
                &self.app.broker,
                &self.app.logical_clock,
                &config.control,
                &self.hostname,
                asked,
            )
        });
        (control, mingle)
    }
}

/// The mailboxes of a worker. Heartbeats of peers are not among them, so that the
/// traffic of a fleet grows with its size and not with its square.
fn mailboxes(config: &Config, hostname: &str) -> Vec<(Mailbox, MessageReader)> {
    vec![
        (config.control.node_mailbox(hostname), read_request),
        (config.events.mailbox("worker.elect"), read_events),
    ]
}
