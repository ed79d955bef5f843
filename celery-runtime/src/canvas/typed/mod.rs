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
use crate::canvas::node::{Canvas, GroupNode, NodeKind};
use crate::canvas::options::{CallOptions, Time};
use crate::canvas::stamp::StampingVisitor;
use crate::task::{Task, TaskArgs, arguments_of};

pub use crate::canvas::typed::args::{AcceptsResult, Ignored, NoMissingArgs, PartialArgs};
pub use crate::canvas::typed::members::{Group, Members, group};

/// A task with its arguments and the options of the call, or a chain or chord of signatures: a
/// workflow with one result of type `Out`.
///
/// `In` are its missing arguments. `()` means that there are none and the signature can be sent.
/// `(T,)` is the result of the step before, a `T`, which Celery prepends to the other arguments.
/// [`Ignored`] means that the result of the step before is ignored.
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
/// A step that does not accept the result before it does not compile:
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
/// A step without a missing argument for the result before it does not compile either:
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
    /// Creates a signature with all arguments of the task, for
    /// [`Client::apply`](crate::Client::apply).
    pub fn s(self, args: A) -> Signature<R> {
        Signature::of(TaskCall::typed(&self, args, self.param_names()))
    }

    /// Creates a signature with the **last** arguments of the task. The first ones are the result
    /// of the step before, or are supplied later by [`given`](Signature::given).
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

    /// Creates an immutable signature with all arguments of the task: the result of the step before
    /// is ignored.
    pub fn si(self, args: A) -> Signature<R, Ignored> {
        self.s(args).immutable()
    }

    /// Creates a task that calls this one with each item as its arguments, one after the other in
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
        Signature::from_result(
            items.map(|(task, items)| Canvas::mapped("celery.starmap", &task, &items)),
        )
    }

    /// Creates a group with one [`starmap`](Self::starmap) per `n` items.
    pub fn chunks(
        self,
        items: impl IntoIterator<Item = A>,
        n: usize,
    ) -> Group<Vec<Vec<R>>, Ignored> {
        let group = self.items(items).map(|(task, items)| {
            let chunks = items.chunks(n.max(1));
            Canvas::group(chunks.map(|chunk| Canvas::mapped("celery.starmap", &task, chunk)))
        });
        Group::from_members(group.unwrap_or_else(|error| {
            Canvas::of(NodeKind::Group(GroupNode::default())).with_error(error.into())
        }))
    }

    /// Returns the task without arguments, and the encoded arguments of each item.
    fn items(
        &self,
        items: impl IntoIterator<Item = A>,
    ) -> Result<(Canvas, Vec<Raw<'static>>), EncodeError> {
        let encode = |args| {
            let call = TaskCall::typed(self, args, self.param_names());
            let (args, kwargs) = call.raw_arguments()?;
            match kwargs.entries() {
                Ok(named) if named.is_empty() => Ok(args),
                _ => Err(EncodeError::new(
                    "the items of a starmap cannot have keyword arguments",
                )),
            }
        };
        let items = items.into_iter().map(encode).collect::<Result<_, _>>()?;
        let task = TaskCall::typed(self, (), &[]);
        Ok((Canvas::call(task), items))
    }
}

impl<A, R> Task<(A,), R>
where
    (A,): TaskArgs,
{
    /// Creates a task that calls this one with each item as its only argument, one after the other
    /// in one process.
    pub fn map(self, items: impl IntoIterator<Item = A>) -> Signature<Vec<R>, Ignored> {
        let items = self.items(items.into_iter().map(|item| (item,)));
        Signature::from_result(items.and_then(|(task, items)| {
            let items = items.iter().map(|args| {
                let mut args = args
                    .elements()
                    .map_err(|error| crate::canvas::wire::encode_error(&error))?;
                args.pop()
                    .ok_or_else(|| EncodeError::new("an item of a map has no value"))
            });
            let items = items.collect::<Result<Vec<_>, _>>()?;
            Ok(Canvas::mapped("celery.map", &task, &items))
        }))
    }
}

impl Signature<Value, Ignored> {
    /// Creates a signature of a task by name, such as one written in Python. `args` must serialize
    /// as an array and `kwargs` as a map; `()` is an empty one. After another step, the result of
    /// that step is prepended to `args`.
    pub fn named(
        task: impl Into<Cow<'static, str>>,
        args: impl Serialize,
        kwargs: impl Serialize,
    ) -> Self {
        let encoded = arguments_of(&|writer| writer.write(&args, &kwargs));
        let empty = || (Raw::json("[]"), Raw::json("{}"));
        let ((args, kwargs), error) = match encoded {
            Ok(encoded) => (encoded, None),
            Err(error) => (empty(), Some(error)),
        };
        let mut named = Self::of(TaskCall::untyped(task, args, kwargs));
        named.canvas.error = error.map(Into::into);
        named
    }
}

impl<Out, In> Signature<Out, In> {
    fn of(call: TaskCall) -> Self {
        Self::from_canvas(Canvas::call(call))
    }

    fn from_result(canvas: Result<Canvas, EncodeError>) -> Self {
        Self::from_canvas(canvas.unwrap_or_else(|error| {
            Canvas::of(NodeKind::Chain(Vec::new())).with_error(error.into())
        }))
    }

    pub(crate) fn from_canvas(canvas: Canvas) -> Self {
        Self {
            canvas,
            types: PhantomData,
        }
    }

    /// Appends `next`, which receives the result of this signature as its first argument. If `next`
    /// is a [`Group`], each member receives the result.
    #[must_use]
    pub fn then<S: Then<Out>>(self, next: S) -> S::After<In> {
        next.after(self.canvas)
    }

    /// Supplies the missing arguments: those of the task, or of a chain's first step.
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

    /// Ignores the result of a step before: the task keeps only its own arguments.
    #[must_use]
    pub fn immutable(self) -> Signature<Out, Ignored> {
        Signature::from_canvas(self.canvas.immutable())
    }

    /// Converts the signature to other types, such as the known types of a task written in Python.
    /// They are not checked; reading the result fails if it has another type.
    #[must_use]
    pub fn cast<NewOut, NewIn>(self) -> Signature<NewOut, NewIn> {
        Signature::from_canvas(self.canvas)
    }

    /// Returns the name of the task; `celery.chain` or `celery.chord` for a chain or chord.
    pub fn task(&self) -> &str {
        self.canvas.task()
    }

    /// Sets the id of the result; a new UUID by default.
    #[must_use]
    pub fn task_id(self, id: impl Into<String>) -> Self {
        self.with(|options| options.task_id = Some(id.into()))
    }

    /// Sets the minimum delay between sending and start (`countdown`).
    #[must_use]
    pub fn countdown(self, delay: Duration) -> Self {
        self.with(|options| options.eta = Some(Time::In(delay)))
    }

    /// Sets the time before which the task does not start (`eta`).
    #[must_use]
    pub fn eta(self, time: SystemTime) -> Self {
        self.with(|options| options.eta = Some(Time::At(time)))
    }

    /// Sets the delay after sending at which the task expires. An expired task is revoked instead
    /// of started.
    #[must_use]
    pub fn expires_in(self, time: Duration) -> Self {
        self.with(|options| options.expires = Some(Time::In(time)))
    }

    /// Sets the time at which the task expires. An expired task is revoked instead of started.
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        self.with(|options| options.expires = Some(Time::At(time)))
    }

    /// Sets the queue, which overrides routes and declaration.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.with(|options| options.queue = Some(queue.into()))
    }

    /// Sets the exchange.
    #[must_use]
    pub fn exchange(self, exchange: impl Into<String>) -> Self {
        self.with(|options| options.exchange = Some(exchange.into()))
    }

    /// Sets the routing key.
    #[must_use]
    pub fn routing_key(self, key: impl Into<String>) -> Self {
        self.with(|options| options.routing_key = Some(key.into()))
    }

    /// Sets the priority, 0 to 9. Redis and the memory broker deliver 0 first, RabbitMQ the highest
    /// number, as in Celery.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.with(|options| options.priority = Some(priority))
    }

    /// Sets the serializer of the arguments.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        self.with(|options| options.serializer = Some(serializer))
    }

    /// Sets the compression of the message body.
    #[must_use]
    pub fn compression(self, compression: Compression) -> Self {
        self.with(|options| options.compression = Some(compression))
    }

    /// Adds a custom header to the message.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with(|options| {
            options.headers.insert(name.into(), value.into());
        })
    }

    /// Sets the soft time limit, at which the task is asked to finish; see
    /// [`Context::soft_time_limit`](crate::Context::soft_time_limit).
    #[must_use]
    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.with(|options| options.soft_time_limit = Some(limit))
    }

    /// Sets the hard time limit, at which the task is aborted.
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        self.with(|options| options.time_limit = Some(limit))
    }

    /// Sets a name that logs and monitors show instead of the task's.
    #[must_use]
    pub fn shadow(self, name: impl Into<String>) -> Self {
        self.with(|options| options.shadow = Some(name.into()))
    }

    /// Does not store the result of this call.
    #[must_use]
    pub fn ignore_result(self) -> Self {
        self.with(|options| options.ignore_result = Some(true))
    }

    /// Adds a callback, which is sent with the result as its first argument when the task succeeds:
    /// the last step of a chain, or the body of a chord.
    #[must_use]
    pub fn link<T, I>(self, callback: &Signature<T, I>) -> Self {
        Self::from_canvas(self.canvas.link(&callback.canvas))
    }

    /// Adds an errback, which is sent with the id of the failed task as its first argument: any
    /// step of a chain, or the header or body of a chord.
    #[must_use]
    pub fn link_error<T, I>(self, errback: &Signature<T, I>) -> Self {
        Self::from_canvas(self.canvas.link_error(&errback.canvas))
    }

    /// Adds a stamp to all tasks. Tasks can be identified and revoked by their stamps.
    #[must_use]
    pub fn stamp(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::from_canvas(self.canvas.stamp(name, value))
    }

    /// Stamps every part with the stamps that `visitor` returns.
    #[must_use]
    pub fn stamp_with(self, visitor: &mut dyn StampingVisitor) -> Self {
        Self::from_canvas(self.canvas.stamp_with(visitor))
    }

    /// Returns the stamps of the task itself.
    pub fn stamps(&self) -> &Map {
        &self.canvas.options.call.stamps
    }

    fn with(mut self, change: impl FnOnce(&mut CallOptions)) -> Self {
        change(&mut self.canvas.options.call);
        self
    }
}

/// A step that can follow a canvas with a result of type `T`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot follow a step whose result is `{T}`",
    note = "Celery prepends the result to the arguments: omit the first argument with \
            `TASK.p((.., ))`, or ignore the result with `TASK.si((.., ))`"
)]
pub trait Then<T>: Sized {
    /// The type of the step after a canvas with the missing arguments `In`.
    type After<In>;

    /// Appends the step to a canvas.
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

/// A canvas without types may follow any step.
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
