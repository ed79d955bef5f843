//! Receiving events: [`Events`], [`EventStream`].

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

/// What workers and clients in any language tell about themselves and their
/// tasks. Made by [`App::events`](crate::App::events).
///
/// Workers tell about tasks if they were started so (Celery's `-E`, the setting
/// `worker_send_task_events`) or were told to by
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
    pattern: String,
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

    /// The same for events whose routing key matches: `worker.#`, `task.*`.
    /// Workers send what they tell about tasks as `task.multi`.
    #[must_use]
    pub fn matching(self, pattern: impl Into<String>) -> Self {
        Self {
            pattern: pattern.into(),
            ..self
        }
    }

    /// The same with timestamps as Celery's own monitors show them in a time
    /// zone that is so many hours behind UTC (-2 is UTC+2): they move the time
    /// of senders in other zones by the hours between both. Senders tell Unix
    /// time, which is the same everywhere, so that it is left alone here unless
    /// this is asked for.
    #[must_use]
    pub fn in_zone(self, hours_behind_utc: f64) -> Self {
        Self {
            zone: Some(hours_behind_utc),
            ..self
        }
    }

    /// Begins to receive, and asks workers to say that they live.
    ///
    /// # Errors
    ///
    /// When the broker does not let us within the configured deadline.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn subscribe(&self) -> Result<EventStream, ServiceError> {
        let subscription = self.open().await?;
        Ok(EventStream {
            events: self.clone(),
            link: StreamState::Up(subscription),
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
        // Whoever is quiet now would be found out only at its next heartbeat.
        if let Err(error) = self.control.heartbeat().send().await {
            tracing::warn!("workers are not asked for a heartbeat: {error}");
        }
        Ok(subscription)
    }

    fn read(&self, message: &Message) -> Vec<Event> {
        let mut events = Event::read_all(message).unwrap_or_else(|error| {
            tracing::warn!("an event cannot be read: {error}");
            Vec::new()
        });
        for event in &mut events {
            self.adjust(event);
        }
        events
    }

    fn adjust(&self, event: &mut Event) {
        // Clients do not follow each other's clocks: theirs tell nothing.
        if event.kind == "task-sent" {
            event.clock = self.logical_clock.value().saturating_sub(1);
        }
        self.logical_clock.adjust(event.clock);
        if let Some(here) = self.zone {
            event.timestamp -= (event.utcoffset - here) * 3600.0;
        }
    }
}

/// Receives events, one after the other.
///
/// A lost connection is made anew with growing pauses, as often as
/// `broker_connection_max_retries` says, and nothing is told of what happened
/// meanwhile; [`losses`](Self::losses) counts that.
pub struct EventStream {
    events: Events,
    link: StreamState,
    /// The rest of a message.
    ready: VecDeque<Event>,
    losses: u64,
}

type Opened = Result<Box<dyn Subscription>, ServiceError>;

enum StreamState {
    Up(Box<dyn Subscription>),
    /// Being made again, after so many failures. It is kept here, so that who
    /// gives up waiting and comes back does not begin anew.
    Down {
        attempt: u32,
        coming: BoxFuture<'static, Opened>,
    },
    /// For ever.
    Over(ServiceError),
}

impl EventStream {
    /// Waits for the next event. Events of one sender come in their order.
    ///
    /// # Errors
    ///
    /// What does not pass by itself, as when the app was closed, and from then
    /// on always the same.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future takes no event with it.
    pub async fn next(&mut self) -> Result<Event, ServiceError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match &mut self.link {
                StreamState::Up(subscription) => match subscription.next().await {
                    Ok(message) => self.ready = self.events.read(&message).into(),
                    Err(error) => {
                        self.losses += 1;
                        self.failed(error, 0);
                    }
                },
                StreamState::Down { attempt, coming } => {
                    let attempt = *attempt;
                    match coming.await {
                        Ok(subscription) => self.link = StreamState::Up(subscription),
                        Err(error) => self.failed(error, attempt + 1),
                    }
                }
                StreamState::Over(error) => return Err(error.clone()),
            }
        }
    }

    /// How often the connection was lost, and events with it.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    fn failed(&mut self, error: ServiceError, attempt: u32) {
        let most = self.events.config.broker_connection_max_retries;
        if !error.is_transient() || most.is_some_and(|most| attempt > most) {
            self.link = StreamState::Over(error);
            return;
        }
        let delay = Backoff::CONNECTION.delay(attempt, env::random());
        tracing::warn!("events are not received: {error}; trying again in {delay:?}");
        let events = self.events.clone();
        let coming = Box::pin(async move {
            tokio::time::sleep(delay).await;
            events.open().await
        });
        self.link = StreamState::Down { attempt, coming };
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

    fn stage() -> (App, Arc<MemoryBroker>) {
        let broker = Arc::new(MemoryBroker::new());
        (App::new(broker.clone()), broker)
    }

    async fn tell(broker: &MemoryBroker, events: &[Event]) {
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
    async fn batches_are_unfolded_and_clocks_adjusted() {
        let (app, broker) = stage();
        let mut stream = app.events().subscribe().await.unwrap();
        tell(
            &broker,
            &[event("task-received", 7), event("task-started", 8)],
        )
        .await;
        tell(&broker, &[event("task-sent", 9_000)]).await;
        assert_eq!(stream.next().await.unwrap().kind, "task-received");
        let started = stream.next().await.unwrap();
        assert_eq!((started.clock, started.timestamp), (8, 10_000.0));
        let sent = stream.next().await.unwrap();
        assert!(sent.clock < 20, "a client's clock tells nothing");
        assert!(app.inner().logical_clock.value() > 8);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_matches_comes_and_zones_are_as_asked_for() {
        let (app, broker) = stage();
        let events = app.events().matching("worker.#").in_zone(1.0);
        let mut stream = events.subscribe().await.unwrap();
        tell(&broker, &[event("task-sent", 1)]).await;
        tell(&broker, &[event("worker-online", 2)]).await;
        let online = stream.next().await.unwrap();
        assert_eq!(online.kind, "worker-online");
        assert_eq!(online.timestamp, 10_000.0 + 3.0 * 3600.0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_passed_over() {
        let (app, broker) = stage();
        let mut stream = app.events().subscribe().await.unwrap();
        let mut broken = Event::write_all(&[event("a-b", 1)]).unwrap();
        broken.body = "[1".into();
        let exchange = Config::new().events.exchange();
        broker.broadcast(&exchange, "a.b", &broken).await.unwrap();
        tell(&broker, &[]).await;
        tell(&broker, &[event("custom-event", 1)]).await;
        assert_eq!(stream.next().await.unwrap().kind, "custom-event");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_made_anew() {
        let (app, broker) = stage();
        let mut stream = app.events().subscribe().await.unwrap();
        broker.faults().go_down();
        let impatient = timeout(Duration::from_secs(60), stream.next()).await;
        assert!(impatient.is_err(), "it keeps trying");
        assert_eq!(stream.losses(), 1);
        broker.faults().come_back();
        // Connected again once it has asked for heartbeats.
        let pidbox = app.config().control.requests();
        let asked = crate::boundary::Mailbox::of(pidbox, "");
        let mut asked = broker.subscribe(&asked).await.unwrap();
        let (event, _) = tokio::join!(stream.next(), async {
            asked.next().await.unwrap();
            tell(&broker, &[event("worker-online", 1)]).await;
        });
        assert_eq!(event.unwrap().kind, "worker-online");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_pass_ends_the_stream() {
        let (app, broker) = stage();
        let mut stream = app.events().subscribe().await.unwrap();
        broker.faults().go_down();
        let trying = timeout(Duration::from_secs(1), stream.next()).await;
        assert!(trying.is_err());
        broker.faults().come_back();
        broker
            .faults()
            .fail_next("subscribe", ServiceErrorKind::Denied);
        for _ in 0..2 {
            let over = stream.next().await.unwrap_err();
            assert_eq!(over.kind(), ServiceErrorKind::Denied);
        }
        broker
            .faults()
            .fail_next("subscribe", ServiceErrorKind::Denied);
        let refused = app.events().subscribe().await.unwrap_err();
        assert_eq!(refused.kind(), ServiceErrorKind::Denied);
    }
}
