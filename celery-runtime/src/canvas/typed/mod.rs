//! Canvases whose types fit: [`Signature`] and [`Group`].

mod args;
mod members;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use celery_protocol::{Compression, EncodeError, Map, Raw, Serializer, Value};
use serde::Serialize;

use crate::canvas::call::TaskCall;
use crate::canvas::node::{Canvas, Kind};
use crate::canvas::options::{CallOptions, Time};
use crate::canvas::stamp::StampingVisitor;
use crate::task::{Task, TaskArgs, arguments_of};

pub use crate::canvas::typed::args::{AcceptsResult, Ignored, NoMissingArgs, PartialArgs};
pub use crate::canvas::typed::members::{Group, Members, group};

/// A task with its arguments and the options of the call, or a chain or chord
/// of such: anything that ends in one result, an `Out`.
///
/// `In` is what it still waits for. `()` is nothing: it can be sent. `(T,)` is
/// the result of a step before, a `T`, which Celery puts before the arguments
/// that are there; [`Ignored`] is whatever it may be, since it is thrown away.
///
/// ```
/// use std::time::Duration;
/// use celery_runtime::Task;
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
///
/// let later = ADD.s((4, 4)).countdown(Duration::from_secs(10)).queue("slow");
/// let twelve = ADD.s((4, 4)).then(ADD.p((4,)));
/// # let _ = (later, twelve);
/// ```
///
/// Steps that do not fit each other do not compile:
///
/// ```compile_fail
/// use celery_runtime::Task;
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add");
/// const SHOUT: Task<(String,), String> = Task::new("tasks.shout");
///
/// let wrong = ADD.s((4, 4)).then(SHOUT.p(()));
/// ```
///
/// And neither does a step without room for the result before it:
///
/// ```compile_fail
/// use celery_runtime::Task;
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add");
///
/// let wrong = ADD.s((4, 4)).then(ADD.s((2, 2)));
/// ```
pub struct Signature<Out, In = ()> {
    pub(crate) canvas: Canvas,
    pub(crate) types: PhantomData<fn(In) -> Out>,
}

impl<A: TaskArgs, R> Task<A, R> {
    /// The task with all of its arguments, to be sent by
    /// [`Client::apply`](crate::Client::apply).
    pub fn s(self, args: A) -> Signature<R> {
        Signature::of(TaskCall::typed(&self, args, self.param_names()))
    }

    /// The task with the **last** ones of its arguments: the others are the
    /// result of a step before, or are [given](Signature::given) later.
    ///
    /// ```
    /// # use celery_runtime::Task;
    /// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    /// const XSUM: Task<(Vec<i64>,), i64> = Task::new("tasks.xsum").params(&["numbers"]);
    ///
    /// let plus_four = ADD.p((4,));
    /// let total = XSUM.p(());
    /// # let _ = (plus_four, total);
    /// ```
    pub fn p<S: TaskArgs>(self, args: S) -> Signature<R, A::Missing>
    where
        A: PartialArgs<S>,
    {
        let params = self.param_names();
        let missing = params.len().saturating_sub(S::ARITY.unwrap_or(0));
        Signature::of(TaskCall::typed(&self, args, &params[missing..]))
    }

    /// The task with all of its arguments, after whatever else: the result of
    /// a step before is thrown away.
    pub fn si(self, args: A) -> Signature<R, Ignored> {
        self.s(args).immutable()
    }

    /// One task that runs this one on each of the items, one after the other in
    /// one process.
    ///
    /// ```
    /// # use celery_runtime::Task;
    /// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    ///
    /// let sums = ADD.starmap([(1, 2), (3, 4)]);
    /// # let _ = sums;
    /// ```
    pub fn starmap(self, items: impl IntoIterator<Item = A>) -> Signature<Vec<R>, Ignored> {
        let items = self.items(items);
        Signature::over(items.map(|(task, items)| Canvas::mapped("celery.starmap", &task, &items)))
    }

    /// The items in groups of `n`, each a [`starmap`](Self::starmap) of its own.
    pub fn chunks(
        self,
        items: impl IntoIterator<Item = A>,
        n: usize,
    ) -> Group<Vec<Vec<R>>, Ignored> {
        let parts = self.items(items).map(|(task, items)| {
            let parts = items.chunks(n.max(1));
            Canvas::group(parts.map(|part| Canvas::mapped("celery.starmap", &task, part)))
        });
        Group::over(parts.unwrap_or_else(|error| {
            Canvas::of(Kind::Group(crate::canvas::node::Members::default())).failed(error.into())
        }))
    }

    /// The task without arguments, and the arguments of each item as an array.
    fn items(
        &self,
        items: impl IntoIterator<Item = A>,
    ) -> Result<(Canvas, Vec<Raw<'static>>), EncodeError> {
        let one = |args| {
            let call = TaskCall::typed(self, args, self.param_names());
            let (args, kwargs) = call.raw_arguments()?;
            match kwargs.entries() {
                Ok(named) if named.is_empty() => Ok(args),
                _ => Err(EncodeError::new(
                    "an item of a starmap has positional arguments only",
                )),
            }
        };
        let items = items.into_iter().map(one).collect::<Result<_, _>>()?;
        let task = TaskCall::typed(self, (), &[]);
        Ok((Canvas::call(task), items))
    }
}

impl<A, R> Task<(A,), R>
where
    (A,): TaskArgs,
{
    /// One task that runs this one on each of the items, one after the other in
    /// one process.
    pub fn map(self, items: impl IntoIterator<Item = A>) -> Signature<Vec<R>, Ignored> {
        let items = self.items(items.into_iter().map(|item| (item,)));
        Signature::over(items.and_then(|(task, items)| {
            let alone = items.iter().map(|args| {
                let mut args = args
                    .elements()
                    .map_err(|error| crate::canvas::wire::unreadable(&error))?;
                args.pop()
                    .ok_or_else(|| EncodeError::new("an item without a value"))
            });
            let alone = alone.collect::<Result<Vec<_>, _>>()?;
            Ok(Canvas::mapped("celery.map", &task, &alone))
        }))
    }
}

impl Signature<Value, Ignored> {
    /// A task known by its name only, such as one written in Python.
    /// `args` must serialize as an array, `kwargs` as a map; `()` is none.
    /// After another step they come behind its result.
    pub fn named(
        task: impl Into<Cow<'static, str>>,
        args: impl Serialize,
        kwargs: impl Serialize,
    ) -> Self {
        let written = arguments_of(&|writer| writer.write(&args, &kwargs));
        let empty = || (Raw::json("[]"), Raw::json("{}"));
        let (written, error) = match written {
            Ok(written) => (written, None),
            Err(error) => (empty(), Some(error)),
        };
        let mut named = Self::of(TaskCall::untyped(task, written.0, written.1));
        named.canvas.flaw = error.map(Into::into);
        named
    }
}

impl<Out, In> Signature<Out, In> {
    fn of(call: TaskCall) -> Self {
        Self::from_canvas(Canvas::call(call))
    }

    fn over(canvas: Result<Canvas, EncodeError>) -> Self {
        Self::from_canvas(
            canvas.unwrap_or_else(|error| Canvas::of(Kind::Chain(Vec::new())).failed(error.into())),
        )
    }

    pub(crate) fn from_canvas(canvas: Canvas) -> Self {
        Self {
            canvas,
            types: PhantomData,
        }
    }

    /// This, and then `next` with its result as the first argument. `next` may
    /// be a [`Group`], each member of which gets the result.
    #[must_use]
    pub fn then<S: Then<Out>>(self, next: S) -> S::After<In> {
        next.after(self.canvas)
    }

    /// The same with the arguments that it waits for: those of the task, or of
    /// a chain's first step.
    ///
    /// ```
    /// # use celery_runtime::Task;
    /// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    ///
    /// let eight = ADD.p((4,)).given((4,));
    /// # let _ = eight;
    /// ```
    #[must_use]
    pub fn given(self, args: In) -> Signature<Out>
    where
        In: TaskArgs + Serialize,
    {
        Signature::from_canvas(self.canvas.given(args))
    }

    /// The same after whatever else, whose result is thrown away.
    #[must_use]
    pub fn immutable(self) -> Signature<Out, Ignored> {
        Signature::from_canvas(self.canvas.immutable())
    }

    /// The same with the types that you know it to have, such as those of a
    /// task written in Python. Nothing checks them but the reading of results.
    #[must_use]
    pub fn cast<NewOut, NewIn>(self) -> Signature<NewOut, NewIn> {
        Signature::from_canvas(self.canvas)
    }

    /// The task's name; `celery.chain` or `celery.chord` for those.
    pub fn task(&self) -> &str {
        self.canvas.task()
    }

    /// The id of the result; a fresh one where none is given.
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
    /// has succeeded; the last step of a chain, the body of a chord.
    #[must_use]
    pub fn link<T, I>(self, callback: &Signature<T, I>) -> Self {
        Self::from_canvas(self.canvas.link(&callback.canvas))
    }

    /// Sends `errback` with the id of the failed task as its first argument
    /// when the task has failed; any step of a chain, or a chord's header or
    /// body.
    #[must_use]
    pub fn link_error<T, I>(self, errback: &Signature<T, I>) -> Self {
        Self::from_canvas(self.canvas.link_error(&errback.canvas))
    }

    /// Puts a stamp on all tasks in it, by which they can be told apart and
    /// revoked.
    #[must_use]
    pub fn stamp(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::from_canvas(self.canvas.stamp(name, value))
    }

    /// Lets `visitor` say which stamps each part gets.
    #[must_use]
    pub fn stamp_with(self, visitor: &mut dyn StampingVisitor) -> Self {
        Self::from_canvas(self.canvas.stamp_with(visitor))
    }

    /// The stamps of the task itself.
    pub fn stamps(&self) -> &Map {
        &self.canvas.options.call.stamps
    }

    fn with(mut self, change: impl FnOnce(&mut CallOptions)) -> Self {
        change(&mut self.canvas.options.call);
        self
    }
}

/// What can follow a canvas whose result is a `T`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot follow a step whose result is `{T}`",
    note = "Celery puts the result before the arguments that are there: leave room for it with \
            `TASK.p((.., ))`, or throw it away with `TASK.si((.., ))`"
)]
pub trait Then<T>: Sized {
    /// What it is after something that waits for `In`.
    type After<In>;

    /// Puts it there.
    #[doc(hidden)]
    fn after<In>(self, before: Canvas) -> Self::After<In>;
}

impl<T, Out, I: AcceptsResult<T>> Then<T> for Signature<Out, I> {
    type After<In> = Signature<Out, In>;

    fn after<In>(self, before: Canvas) -> Signature<Out, In> {
        Signature::from_canvas(before.then(self.canvas))
    }
}

impl<Out, In> From<Signature<Out, In>> for Canvas {
    fn from(signature: Signature<Out, In>) -> Self {
        signature.canvas
    }
}

/// Without types, anything may follow anything.
impl From<Canvas> for Signature<Value, Ignored> {
    fn from(canvas: Canvas) -> Self {
        Self::from_canvas(canvas)
    }
}

impl<Out, In> Clone for Signature<Out, In> {
    fn clone(&self) -> Self {
        Self::from_canvas(self.canvas.clone())
    }
}

impl<Out, In> fmt::Debug for Signature<Out, In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature")
            .field("task", &self.task())
            .field("options", &self.canvas.options)
            .finish_non_exhaustive()
    }
}
