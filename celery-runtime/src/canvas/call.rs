//! The leaf of a canvas: [`TaskCall`], one task with its arguments.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use celery_protocol::{EncodeError, Raw, Serializer};

use crate::task::{
    ArgumentEncoder, EncodedArguments, Params, Task, TaskArgs, Unique, arguments_of,
};

/// A task, its arguments, and the options of its declaration that apply to sending.
#[derive(Clone)]
pub(crate) struct TaskCall {
    pub(crate) task: Cow<'static, str>,
    arguments: Arc<dyn EncodeArguments>,
    /// Arguments that were added later. Celery prepends them to the others.
    prepended: Vec<Raw<'static>>,
    pub(crate) queue: Option<Cow<'static, str>>,
    pub(crate) priority: Option<u8>,
    pub(crate) ignore_result: Option<bool>,
    /// The uniqueness of the task, if the client takes the lock.
    pub(crate) unique: Option<Box<(Unique, Params)>>,
    /// The task whose route applies, if it is not this one.
    pub(crate) routed_as: Option<Cow<'static, str>>,
}

/// Arguments that can be encoded for a message.
trait EncodeArguments: Send + Sync {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError>;
}

/// The typed arguments of a declared task.
struct TypedArguments<A> {
    args: A,
    params: &'static [&'static str],
}

impl<A: TaskArgs> EncodeArguments for TypedArguments<A> {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError> {
        self.args.write_call(self.params, writer)
    }
}

/// Encoded arguments: an array and a map.
struct RawArguments {
    args: Raw<'static>,
    kwargs: Raw<'static>,
}

impl EncodeArguments for RawArguments {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError> {
        writer.write(&self.args, &self.kwargs)
    }
}

impl TaskCall {
    /// Creates a call of a declared task. `args` are the arguments of its last parameters,
    /// `params`.
    pub(crate) fn typed<A: TaskArgs, R, S: TaskArgs>(
        task: &Task<A, R>,
        args: S,
        params: &'static [&'static str],
    ) -> Self {
        Self {
            queue: task.default_queue().map(Cow::Borrowed),
            priority: task.task_options().priority,
            ignore_result: task.task_options().ignore_result,
            unique: task.uniqueness(),
            ..Self::of(
                Cow::Borrowed(task.name()),
                Arc::new(TypedArguments { args, params }),
            )
        }
    }

    /// Creates a call of a task by name. `args` is an array, `kwargs` a map.
    pub(crate) fn untyped(
        task: impl Into<Cow<'static, str>>,
        args: Raw<'static>,
        kwargs: Raw<'static>,
    ) -> Self {
        Self::of(task.into(), Arc::new(RawArguments { args, kwargs }))
    }

    fn of(task: Cow<'static, str>, arguments: Arc<dyn EncodeArguments>) -> Self {
        Self {
            task,
            arguments,
            prepended: Vec::new(),
            queue: None,
            priority: None,
            ignore_result: None,
            unique: None,
            routed_as: None,
        }
    }

    /// Prepends arguments.
    pub(crate) fn prepend_args(&mut self, args: &[Raw<'static>]) {
        self.prepended.splice(..0, args.iter().cloned());
    }

    /// Encodes the arguments for a message.
    pub(crate) fn write(
        &self,
        writer: &ArgumentEncoder<'_>,
    ) -> Result<EncodedArguments, EncodeError> {
        if self.prepended.is_empty() {
            return self.arguments.write(writer);
        }
        let (args, kwargs) = self.raw_arguments()?;
        writer.write(&args, &kwargs)
    }

    /// Returns the encoded arguments: an array and a map.
    pub(crate) fn raw_arguments(&self) -> Result<(Raw<'static>, Raw<'static>), EncodeError> {
        let (args, kwargs) = arguments_of(&|writer| self.arguments.write(writer))?;
        if self.prepended.is_empty() {
            return Ok((args, kwargs));
        }
        let own = args.elements();
        let own = own.map_err(|error| EncodeError::new(error.to_string()))?;
        let all: Vec<_> = self.prepended.iter().chain(&own).collect();
        Ok((Raw::encode(Serializer::Json, &all)?, kwargs))
    }
}

impl fmt::Debug for TaskCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskCall").field(&self.task).finish()
    }
}
