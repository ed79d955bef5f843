//! Receives monitoring events: [`Events`], [`EventStream`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use celery_protocol::{Event, Message};
use tokio::time::timeout;

use crate::app::inner::AppInner;
use crate::backoff::Backoff;
use crate::boundary::{BoxFuture, Broker, ServiceError, Subscription};
use crate::config::Config;
use crate::control::Control;
use crate::env;
use crate::logical_clock::LogicalClock;

/// Subscribes to the monitoring events of workers and clients in any language.
///
/// Created by [`App::events`](crate::App::events). Workers send task events if they
/// are enabled at their start (Celery's `-E`, the setting
/// `worker_send_task_events`) or later by
/// [`Control::enable_events`](crate::Control::enable_events).
///
/// ```no_run
/// # async fn example(app: celery_runtime::App) -> Result<(), celery_runtime::ServiceError> {
/// use std::time::SystemTime;
///
/// use celery_runtime::ClusterState;
///
/// let mut cluster = ClusterState::new();
/// let mut events = app.events().subscribe().await?;
/// loop {
///     cluster.handle(&events.next().await?, SystemTime::now());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Events {
    broker: Arc<dyn Broker>,
    config: Arc<Config>,
    logical_clock: LogicalClock,
    control: Control,
    /// The pattern of routing keys.
    pattern: String,
    /// The hours behind UTC to which timestamps are shifted.
    zone: Option<f64>,
}

impl Events {
    pub(crate) fn new(app: &AppInner) -> Self {
        Self {
            broker: Arc::clone(&app.broker),
            config: Arc::clone(&app.config),
            logical_clock: app.logical_clock.clone(),
            control: Control::new(app),
            pattern: "#".to_owned(),
            zone: None,
        }
    }

    /// Restricts the subscription to events whose routing key matches the pattern,
    /// such as `worker.#` or `task.*`; by default all. Workers send batches of task
    /// events with the routing key `task.multi`.
    #[must_use]
    pub fn matching(self, pattern: impl Into<String>) -> Self {
        Self {
            pattern: pattern.into(),
            ..self
        }
    }

    /// Shifts timestamps like Celery's monitors in a time zone that is
    /// `hours_behind_utc` behind UTC; -2 is UTC+2.
    ///
    /// They add the difference between the zones of monitor and sender. By default
    /// timestamps are not changed: senders use Unix time, which does not depend on
    /// the zone.
    #[must_use]
    pub fn in_zone(self, hours_behind_utc: f64) -> Self {
        Self {
            zone: Some(hours_behind_utc),
            ..self
        }
    }

    /// Subscribes to events, and requests a heartbeat of all workers.
    ///
    /// # Errors
    ///
    /// When the broker does not accept the subscription within
    /// [`Config::operation_timeout`](crate::Config::operation_timeout).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn subscribe(&self) -> Result<EventStream, ServiceError> {
        let subscription = self.open().await?;
        Ok(EventStream {
            events: self.clone(),
            state: StreamState::Connected(subscription),
            ready: VecDeque::new(),
            losses: 0,
        })
    }

    async fn open(&self) -> Opened {
        let mailbox = self.config.events.mailbox(&self.pattern);
        let deadline = self.config.operation_timeout;
        let opened = timeout(deadline, self.broker.subscribe(&mailbox)).await;
        let subscription = opened.unwrap_or_else(|_| {
            let object = format!("events by mailbox {}", mailbox.name);
            let blocked_reason = self.broker.blocked_reason();
            Err(ServiceError::no_answer_for(
                "subscribe to",
                object,
                deadline,
                blocked_reason,
            ))
        })?;
        // Otherwise idle workers would be seen only at their next regular heartbeat.
        if let Err(error) = self.control.heartbeat().send().await {
            tracing::warn!("cannot request heartbeats from workers: {error}");
        }
        Ok(subscription)
    }

    fn read(&self, message: &Message) -> Vec<Event> {
        let mut events = Event::read_all(message).unwrap_or_else(|error| {
            tracing::warn!("cannot decode an event: {error}");
            Vec::new()
        });
        for event in &mut events {
            self.adjust(event);
        }
        events
    }

    fn adjust(&self, event: &mut Event) {
        // Clients do not synchronize their logical clocks, so that the clock of a
        // `task-sent` event is meaningless.
        if event.kind == "task-sent" {
            event.clock = self.logical_clock.value().saturating_sub(1);
        }
        self.logical_clock.adjust(event.clock);
        if let Some(zone) = self.zone {
            event.timestamp -= (event.utcoffset - zone) * 3600.0;
        }
    }
}

/// Receives events one by one, and reconnects after a lost connection.
///
/// Reconnecting uses an exponential back-off and at most
/// `broker_connection_max_retries` retries. Events sent while it is disconnected are
/// lost; [`losses`](Self::losses) counts the lost connections.
pub struct EventStream {
    events: Events,
    state: StreamState,
    /// Decoded events of the last message.
    ready: VecDeque<Event>,
    losses: u64,
}

type Opened = Result<Box<dyn Subscription>, ServiceError>;

enum StreamState {
    Connected(Box<dyn Subscription>),
    /// Reconnecting after this number of failed attempts. The future is kept here, so
    /// that an attempt continues when a dropped call of `next` is repeated.
    Connecting {
        attempt: u32,
        opening: BoxFuture<'static, Opened>,
    },
    /// Permanently failed.
    Failed(ServiceError),
}

impl EventStream {
    /// Waits for the next event. Events of one sender arrive in order.
    ///
    /// # Errors
    ///
    /// Errors that are not transient, as after the app was closed, and the last error
    /// after all retries. Every later call returns the same error.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Event, ServiceError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match &mut self.state {
                StreamState::Connected(subscription) => match subscription.next().await {
                    Ok(message) => self.ready = self.events.read(&message).into(),
                    Err(error) => {
                        self.losses += 1;
                        self.reconnect(error, 0);
                    }
                },
                StreamState::Connecting { attempt, opening } => {
                    let attempt = *attempt;
                    match opening.await {
                        Ok(subscription) => self.state = StreamState::Connected(subscription),
                        Err(error) => self.reconnect(error, attempt + 1),
                    }
                }
                StreamState::Failed(error) => return Err(error.clone()),
            }
        }
    }

    /// Returns how many times the connection was lost, and possibly events with it.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// Schedules the next attempt, or ends the stream.
    fn reconnect(&mut self, error: ServiceError, attempt: u32) {
        let limit = self.events.config.broker_connection_max_retries;
        if !error.is_transient() || limit.is_some_and(|limit| attempt > limit) {
            self.state = StreamState::Failed(error);
            return;
        }
        let delay = Backoff::CONNECTION.delay(attempt, env::random());
        tracing::warn!("cannot receive events: {error}; reconnecting in {delay:?}");
        let events = self.events.clone();
        let opening = Box::pin(async move {
            tokio::time::sleep(delay).await;
            events.open().await
        });
        self.state = StreamState::Connecting { attempt, opening };
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("events", &self.events)
            .field("losses", &self.losses)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::app::App;
    use crate::boundary::ServiceErrorKind;
    use crate::memory::MemoryBroker;

    fn app() -> (App, Arc<MemoryBroker>) {
        let broker = Arc::new(MemoryBroker::new());
        (App::new(broker.clone()), broker)
    }

    async fn send(broker: &MemoryBroker, events: &[Event]) {
        let message = Event::write_all(events).unwrap();
        let exchange = Config::new().events.exchange();
        let key = match events {
            [one] => one.routing_key(),
            _ => "task.multi".to_owned(),
        };
        broker.broadcast(&exchange, &key, &message).await.unwrap();
    }

    fn event(kind: &str, clock: u64) -> Event {
        let mut event = Event::new(kind, "w@h");
        event.clock = clock;
        event.utcoffset = -2.0;
        event.timestamp = 10_000.0;
        event
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_unpacked_and_clocks_adjusted() {
        let (app, broker) = app();
        let mut stream = app.events().subscribe().await.unwrap();
        send(
            &broker,
            &[event("task-received", 7), event("task-started", 8)],
        )
        .await;
        send(&broker, &[event("task-sent", 9_000)]).await;
        assert_eq!(stream.next().await.unwrap().kind, "task-received");
        let started = stream.next().await.unwrap();
        assert_eq!((started.clock, started.timestamp), (8, 10_000.0));
        let sent = stream.next().await.unwrap();
        assert!(sent.clock < 20, "the clock of a client is replaced");
        assert!(app.inner().logical_clock.value() > 8);
    }

    #[tokio::test(start_paused = true)]
    async fn pattern_and_zone_are_applied() {
        let (app, broker) = app();
        let events = app.events().matching("worker.#").in_zone(1.0);
        let mut stream = events.subscribe().await.unwrap();
        send(&broker, &[event("task-sent", 1)]).await;
        send(&broker, &[event("worker-online", 2)]).await;
        let online = stream.next().await.unwrap();
        assert_eq!(online.kind, "worker-online");
        assert_eq!(online.timestamp, 10_000.0 + 3.0 * 3600.0);
    }

    #[tokio::test(start_paused = true)]
    async fn undecodable_events_are_skipped() {
        let (app, broker) = app();
        let mut stream = app.events().subscribe().await.unwrap();
        let mut broken = Event::write_all(&[event("a-b", 1)]).unwrap();
        broken.body = "[1".into();
        let exchange = Config::new().events.exchange();
        broker.broadcast(&exchange, "a.b", &broken).await.unwrap();
        send(&broker, &[]).await;
        send(&broker, &[event("custom-event", 1)]).await;
        assert_eq!(stream.next().await.unwrap().kind, "custom-event");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_connection_is_reopened() {
        let (app, broker) = app();
        let mut stream = app.events().subscribe().await.unwrap();
        broker.faults().go_down();
        let waiting = timeout(Duration::from_secs(60), stream.next()).await;
        assert!(waiting.is_err(), "it keeps trying");
        assert_eq!(stream.losses(), 1);
        broker.faults().come_back();
        // The stream is connected once it has requested heartbeats.
        let pidbox = app.config().control.requests();
        let mailbox = crate::boundary::Mailbox::of(pidbox, "");
        let mut commands = broker.subscribe(&mailbox).await.unwrap();
        let (event, _) = tokio::join!(stream.next(), async {
            commands.next().await.unwrap();
            send(&broker, &[event("worker-online", 1)]).await;
        });
        assert_eq!(event.unwrap().kind, "worker-online");
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_error_ends_the_stream() {
        let (app, broker) = app();
        let mut stream = app.events().subscribe().await.unwrap();
        broker.faults().go_down();
        let trying = timeout(Duration::from_secs(1), stream.next()).await;
        assert!(trying.is_err());
        broker.faults().come_back();
        broker
            .faults()
            .fail_next("subscribe", ServiceErrorKind::Denied);
        for _ in 0..2 {
            let error = stream.next().await.unwrap_err();
            assert_eq!(error.kind(), ServiceErrorKind::Denied);
        }
        broker
            .faults()
            .fail_next("subscribe", ServiceErrorKind::Denied);
        let error = app.events().subscribe().await.unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Denied);
    }
}
