//! The state of one task according to its events: [`TaskRecord`].

use celery_protocol::{Event, State, Value};

/// Most bytes of a text; longer ones are truncated, so that the memory of the table
/// is bounded.
const MAX_TEXT: usize = 16 << 10;

/// A task according to its events, which may arrive in any order.
///
/// Texts are truncated to 16 KiB. Times are seconds since the Unix epoch by the
/// sender's clock.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TaskRecord {
    /// Its id.
    pub id: String,
    /// Its name, if an event contained it.
    pub name: Option<String>,
    /// Its most advanced state in the lifecycle of a task.
    pub state: State,
    /// The worker that received it.
    pub worker: Option<String>,
    /// The client that sent it, if it sends `task-sent` events.
    pub client: Option<String>,
    /// When it reached its state.
    pub timestamp: Option<f64>,
    /// When it was sent.
    pub sent: Option<f64>,
    /// When a worker received it.
    pub received: Option<f64>,
    /// When it was started.
    pub started: Option<f64>,
    /// When it succeeded.
    pub succeeded: Option<f64>,
    /// When it failed.
    pub failed: Option<f64>,
    /// When it was last retried.
    pub retried: Option<f64>,
    /// When it was revoked.
    pub revoked: Option<f64>,
    /// When a worker rejected it.
    pub rejected: Option<f64>,
    /// Its positional arguments as text, in the notation of the sender's language.
    pub args: Option<String>,
    /// Its keyword arguments as such a text.
    pub kwargs: Option<String>,
    /// Its return value as such a text.
    pub result: Option<String>,
    /// Its exception as such a text.
    pub exception: Option<String>,
    /// The traceback of its exception.
    pub traceback: Option<String>,
    /// Its run time in seconds.
    pub runtime: Option<f64>,
    /// The number of its retries.
    pub retries: Option<u64>,
    /// Its ETA in ISO 8601.
    pub eta: Option<String>,
    /// When it expires, in ISO 8601.
    pub expires: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// The first task of the workflow or call tree that it belongs to.
    pub root_id: Option<String>,
    /// Its queue, if the client sends `task-sent` events.
    pub queue: Option<String>,
    /// Its exchange, if the client sends `task-sent` events.
    pub exchange: Option<String>,
    /// Its routing key, if the client sends `task-sent` events.
    pub routing_key: Option<String>,
    /// The highest logical clock of its events.
    pub clock: u64,
}

impl TaskRecord {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            ..Self::default()
        }
    }

    /// Applies an event like Celery's monitors: an event of an earlier state does not
    /// change the state, and a late `task-received` sets only the fields that no
    /// other event contains. A retry starts the lifecycle again.
    pub(super) fn handle(&mut self, event: &Event) {
        let state = state(&event.kind);
        if let Some(when) = self.timestamp_of(&state) {
            *when = Some(event.timestamp);
        }
        let is_retry = state == State::Retry || self.state == State::Retry;
        let is_late = !is_retry && state.precedence() > self.state.precedence();
        match &*event.kind {
            "task-sent" => self.client = Some(event.hostname.clone()),
            _ => self.worker = Some(event.hostname.clone()),
        }
        self.clock = self.clock.max(event.clock);
        self.apply_fields(event, is_late && state == State::Received);
        if !is_late {
            self.timestamp = Some(event.timestamp);
            self.state = state;
        }
    }

    /// Sets the fields that the event contains; with `received_only` those of
    /// `task-received` alone.
    fn apply_fields(&mut self, event: &Event, received_only: bool) {
        let field = |name| event.fields.get(name);
        let text = |name| field(name).and_then(Value::as_str).map(truncated);
        for (target, name) in [
            (&mut self.name, "name"),
            (&mut self.args, "args"),
            (&mut self.kwargs, "kwargs"),
            (&mut self.eta, "eta"),
            (&mut self.expires, "expires"),
            (&mut self.parent_id, "parent_id"),
            (&mut self.root_id, "root_id"),
        ] {
            *target = text(name).or(target.take());
        }
        let retries = field("retries").and_then(Value::as_u64);
        self.retries = retries.or(self.retries);
        if received_only {
            return;
        }
        for (target, name) in [
            (&mut self.result, "result"),
            (&mut self.exception, "exception"),
            (&mut self.traceback, "traceback"),
            (&mut self.queue, "queue"),
            (&mut self.exchange, "exchange"),
            (&mut self.routing_key, "routing_key"),
        ] {
            *target = text(name).or(target.take());
        }
        let runtime = field("runtime").and_then(Value::as_f64);
        self.runtime = runtime.or(self.runtime);
    }

    /// Returns the field with the time of this state.
    fn timestamp_of(&mut self, state: &State) -> Option<&mut Option<f64>> {
        Some(match state {
            State::Pending => &mut self.sent,
            State::Received => &mut self.received,
            State::Started => &mut self.started,
            State::Success => &mut self.succeeded,
            State::Failure => &mut self.failed,
            State::Retry => &mut self.retried,
            State::Revoked => &mut self.revoked,
            State::Rejected => &mut self.rejected,
            _ => return None,
        })
    }
}

/// Returns the state of a task after an event of this kind.
pub(super) fn state(kind: &str) -> State {
    match kind.strip_prefix("task-").unwrap_or(kind) {
        "sent" => State::Pending,
        "received" => State::Received,
        "started" => State::Started,
        "succeeded" => State::Success,
        "failed" => State::Failure,
        "retried" => State::Retry,
        "revoked" => State::Revoked,
        "rejected" => State::Rejected,
        other => State::named(&truncated(other).to_uppercase()),
    }
}

/// Returns the text truncated to [`MAX_TEXT`] bytes.
pub(super) fn truncated(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
