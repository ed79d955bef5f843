//! A call that is prepared and not sent yet: [`Signature`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::{Compression, EncodeError, Map, Raw, Serializer, Value};
use serde::Serialize;

use super::compose::{Outgoing, Uncomposed, arguments_of};
use super::options::{CallOptions, Time};
use crate::task::{Call, CallWriter, Params, Task, TaskArgs, Unique};

/// A task, its arguments and the options of the call; `R` is its result.
///
/// ```
/// use std::time::Duration;
/// use celery_runtime::Task;
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
///
/// let later = ADD.s((4, 4)).countdown(Duration::from_secs(10)).queue("slow");
/// # let _ = later;
/// ```
pub struct Signature<R> {
    task: Cow<'static, str>,
    arguments: Arc<dyn Arguments>,
    queue: Option<&'static str>,
    priority: Option<u8>,
    ignore_result: Option<bool>,
    /// Set where there must be one at a time.
    pub(crate) unique: Option<Box<(Unique, Params)>>,
    pub(crate) options: CallOptions,
    /// What could not be written while building; reported when it is sent.
    error: Option<EncodeError>,
    result: PhantomData<fn() -> R>,
}

trait Arguments: Send + Sync {
    fn write(&self, writer: &CallWriter<'_>) -> Result<Call, EncodeError>;
}

struct Typed<A> {
    args: A,
    params: &'static [&'static str],
}

impl<A: TaskArgs> Arguments for Typed<A> {
    fn write(&self, writer: &CallWriter<'_>) -> Result<Call, EncodeError> {
        self.args.write_call(self.params, writer)
    }
}

struct Untyped {
    args: Raw<'static>,
    kwargs: Raw<'static>,
}

impl Arguments for Untyped {
    fn write(&self, writer: &CallWriter<'_>) -> Result<Call, EncodeError> {
        writer.write(&self.args, &self.kwargs)
    }
}

impl<A: TaskArgs, R> Task<A, R> {
    /// The task with these arguments, to be sent by
    /// [`Client::apply`](crate::Client::apply).
    pub fn s(self, args: A) -> Signature<R> {
        let arguments = Arc::new(Typed {
            args,
            params: self.param_names(),
        });
        Signature {
            queue: self.default_queue(),
            priority: self.task_options().priority,
            ignore_result: self.task_options().ignore_result,
            unique: self.uniqueness(),
            ..Signature::of(Cow::Borrowed(self.name()), arguments)
        }
    }
}

impl Signature<Value> {
    /// A task known by its name only, such as one written in Python.
    /// `args` must serialize as an array, `kwargs` as a map; `()` is none.
    pub fn named(
        task: impl Into<Cow<'static, str>>,
        args: impl Serialize,
        kwargs: impl Serialize,
    ) -> Self {
        let written = arguments_of(&|writer| writer.write(&args, &kwargs));
        let (args, kwargs, error) = match written {
            Ok((args, kwargs)) => (args, kwargs, None),
            Err(error) => (Raw::json("[]"), Raw::json("{}"), Some(error)),
        };
        Self {
            error,
            ..Self::of(task.into(), Arc::new(Untyped { args, kwargs }))
        }
    }
}

impl<R> Signature<R> {
    fn of(task: Cow<'static, str>, arguments: Arc<dyn Arguments>) -> Self {
        Self {
            task,
            arguments,
            queue: None,
            priority: None,
            ignore_result: None,
            unique: None,
            options: CallOptions::default(),
            error: None,
            result: PhantomData,
        }
    }

    /// The task's name.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// The id of the call; a fresh one where none is given.
    #[must_use]
    pub fn task_id(self, id: impl Into<String>) -> Self {
        self.with(|options| options.task_id = Some(id.into()))
    }

    /// Not to run before this much time has passed.
    #[must_use]
    pub fn countdown(self, delay: Duration) -> Self {
        self.with(|options| options.eta = Some(Time::In(delay)))
    }

    /// Not to run before this time.
    #[must_use]
    pub fn eta(self, time: SystemTime) -> Self {
        self.with(|options| options.eta = Some(Time::At(time)))
    }

    /// Not to start after this much time has passed; then it is revoked.
    #[must_use]
    pub fn expires_in(self, time: Duration) -> Self {
        self.with(|options| options.expires = Some(Time::In(time)))
    }

    /// Not to start after this time; then it is revoked.
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        self.with(|options| options.expires = Some(Time::At(time)))
    }

    /// Sends it to this queue, whatever routes and declaration say.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.with(|options| options.queue = Some(queue.into()))
    }

    /// Sends it to this exchange.
    #[must_use]
    pub fn exchange(self, exchange: impl Into<String>) -> Self {
        self.with(|options| options.exchange = Some(exchange.into()))
    }

    /// Sends it with this routing key.
    #[must_use]
    pub fn routing_key(self, key: impl Into<String>) -> Self {
        self.with(|options| options.routing_key = Some(key.into()))
    }

    /// Its priority, 0 to 9. On Redis and in memory 0 goes first, on RabbitMQ
    /// the highest number, as in Celery.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.with(|options| options.priority = Some(priority))
    }

    /// The serializer of its arguments.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        self.with(|options| options.serializer = Some(serializer))
    }

    /// Compresses its arguments.
    #[must_use]
    pub fn compression(self, compression: Compression) -> Self {
        self.with(|options| options.compression = Some(compression))
    }

    /// Adds a header of your own to the message.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with(|options| {
            options.headers.insert(name.into(), value.into());
        })
    }

    /// Time after which the task is told to finish.
    #[must_use]
    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.with(|options| options.soft_time_limit = Some(limit))
    }

    /// Time after which the task is ended.
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        self.with(|options| options.time_limit = Some(limit))
    }

    /// A name to show in logs and monitors instead of the task's.
    #[must_use]
    pub fn shadow(self, name: impl Into<String>) -> Self {
        self.with(|options| options.shadow = Some(name.into()))
    }

    /// Stores no result of this call.
    #[must_use]
    pub fn ignore_result(self) -> Self {
        self.with(|options| options.ignore_result = Some(true))
    }

    /// Sends `callback` with the result as its first argument when the task
    /// has succeeded.
    #[must_use]
    pub fn link<T>(self, callback: &Signature<T>) -> Self {
        self.embedding(callback, |options| &mut options.embed.callbacks)
    }

    /// Sends `errback` with the id of this task as its first argument when the
    /// task has failed.
    #[must_use]
    pub fn link_error<T>(self, errback: &Signature<T>) -> Self {
        self.embedding(errback, |options| &mut options.embed.errbacks)
    }

    fn embedding<T>(
        mut self,
        other: &Signature<T>,
        slot: fn(&mut CallOptions) -> &mut Option<Raw<'static>>,
    ) -> Self {
        let slot = slot(&mut self.options);
        let appended = other.to_wire().and_then(|wire| {
            let mut list = match slot.as_ref().map(Raw::elements) {
                Some(Ok(list)) => list,
                _ => celery_protocol::Elements::new(),
            };
            list.push(wire);
            Raw::encode(Serializer::Json, &list[..])
        });
        match appended {
            Ok(list) => *slot = Some(list),
            Err(error) => self.error = Some(error),
        }
        self
    }

    /// The form in which one message carries another call.
    fn to_wire(&self) -> Result<Raw<'static>, EncodeError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let (args, kwargs) = arguments_of(&|writer| self.arguments.write(writer))?;
        let mut signature = celery_protocol::Signature::new(self.task.clone())
            .with_args(&args)?
            .with_kwargs(&kwargs)?;
        signature.options = Raw::encode(Serializer::Json, &self.wire_options())?;
        Raw::encode(Serializer::Json, &signature)
    }

    /// What Celery calls the options of a signature; unset ones are left out.
    fn wire_options(&self) -> Map {
        let own = [
            ("queue", self.queue.map(Value::from)),
            (
                "priority",
                self.priority.map(|level| Value::Int(level.into())),
            ),
        ];
        let mut wire: Map = own
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        self.options.write_wire(&mut wire);
        wire
    }

    fn with(mut self, change: impl FnOnce(&mut CallOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Whether call or declaration say that there will be no result.
    pub(crate) fn ignores_result(&self) -> Option<bool> {
        self.options.ignore_result.or(self.ignore_result)
    }

    /// Hands the call's parts to `use_it`, in the form that messages are made of.
    pub(crate) fn outgoing<T>(
        &self,
        use_it: impl FnOnce(&Outgoing<'_>) -> Result<T, Uncomposed>,
    ) -> Result<T, Uncomposed> {
        if let Some(error) = &self.error {
            return Err(error.clone().into());
        }
        use_it(&Outgoing {
            task: self.task.clone(),
            queue: self.queue,
            priority: self.priority,
            options: &self.options,
            write: &|writer| self.arguments.write(writer),
        })
    }
}

impl<R> Clone for Signature<R> {
    fn clone(&self) -> Self {
        Self {
            task: self.task.clone(),
            arguments: Arc::clone(&self.arguments),
            queue: self.queue,
            priority: self.priority,
            ignore_result: self.ignore_result,
            unique: self.unique.clone(),
            options: self.options.clone(),
            error: self.error.clone(),
            result: PhantomData,
        }
    }
}

impl<R> fmt::Debug for Signature<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature")
            .field("task", &self.task)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
