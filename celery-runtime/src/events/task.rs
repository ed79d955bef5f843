//! What is known of a task: [`TaskRecord`].

use celery_protocol::{Event, State, Value};

/// Longer texts are cut off, so that a table of tasks stays bounded.
const LONGEST: usize = 16 << 10;

/// A task, by its events, in whatever order they came.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TaskRecord {
    /// Its id.
    pub id: String,
    /// Its name, once somebody told it.
    pub name: Option<String>,
    /// The last of its states in a task's life.
    pub state: State,
    /// The worker that has it.
    pub worker: Option<String>,
    /// Who sent it, if clients tell.
    pub client: Option<String>,
    /// When it reached its state, as Unix time; so are the following.
    pub timestamp: Option<f64>,
    /// When it was sent.
    pub sent: Option<f64>,
    /// When a worker took it.
    pub received: Option<f64>,
    /// When it was started.
    pub started: Option<f64>,
    /// When it ended with a value.
    pub succeeded: Option<f64>,
    /// When it ended with an error.
    pub failed: Option<f64>,
    /// When it was last to be tried again.
    pub retried: Option<f64>,
    /// When it was revoked.
    pub revoked: Option<f64>,
    /// When a worker refused it.
    pub rejected: Option<f64>,
    /// Its positional arguments, as a text of the sender's language.
    pub args: Option<String>,
    /// Its keyword arguments, as such a text.
    pub kwargs: Option<String>,
    /// Its value, as such a text.
    pub result: Option<String>,
    /// Its error, as such a text.
    pub exception: Option<String>,
    /// Where the error was raised.
    pub traceback: Option<String>,
    /// For how many seconds it ran.
    pub runtime: Option<f64>,
    /// How often it was tried again.
    pub retries: Option<u64>,
    /// When it is due, ISO 8601.
    pub eta: Option<String>,
    /// When it is not to be started any more, ISO 8601.
    pub expires: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// The first task of those that led to it.
    pub root_id: Option<String>,
    /// The queue that it was sent to, if clients tell.
    pub queue: Option<String>,
    /// The exchange that it was sent to, if clients tell.
    pub exchange: Option<String>,
    /// The routing key that it was sent with, if clients tell.
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

    /// Takes in what an event tells of it, as Celery's monitors do: an event
    /// from earlier in the task's life does not change the state, and of a
    /// late `task-received` only what it alone knows counts. After a retry life
    /// begins anew.
    pub(super) fn handle(&mut self, event: &Event) {
        let state = state(&event.kind);
        if let Some(when) = self.moment(&state) {
            *when = Some(event.timestamp);
        }
        let is_retry = state == State::Retry || self.state == State::Retry;
        let is_late = !is_retry && state.precedence() > self.state.precedence();
        match &*event.kind {
            "task-sent" => self.client = Some(event.hostname.clone()),
            _ => self.worker = Some(event.hostname.clone()),
        }
        self.clock = self.clock.max(event.clock);
        self.take_in(event, is_late && state == State::Received);
        if !is_late {
            self.timestamp = Some(event.timestamp);
            self.state = state;
        }
    }

    fn take_in(&mut self, event: &Event, beginning_alone: bool) {
        let field = |name| event.fields.get(name);
        let text = |name| field(name).and_then(Value::as_str).map(bounded);
        for (known, name) in [
            (&mut self.name, "name"),
            (&mut self.args, "args"),
            (&mut self.kwargs, "kwargs"),
            (&mut self.eta, "eta"),
            (&mut self.expires, "expires"),
            (&mut self.parent_id, "parent_id"),
            (&mut self.root_id, "root_id"),
        ] {
            *known = text(name).or(known.take());
        }
        let retries = field("retries").and_then(Value::as_u64);
        self.retries = retries.or(self.retries);
        if beginning_alone {
            return;
        }
        for (known, name) in [
            (&mut self.result, "result"),
            (&mut self.exception, "exception"),
            (&mut self.traceback, "traceback"),
            (&mut self.queue, "queue"),
            (&mut self.exchange, "exchange"),
            (&mut self.routing_key, "routing_key"),
        ] {
            *known = text(name).or(known.take());
        }
        let runtime = field("runtime").and_then(Value::as_f64);
        self.runtime = runtime.or(self.runtime);
    }

    fn moment(&mut self, state: &State) -> Option<&mut Option<f64>> {
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

/// The state in which a task is after an event of this kind.
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
        other => State::named(&bounded(other).to_uppercase()),
    }
}

/// A text without what is beyond the limit.
pub(super) fn bounded(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
