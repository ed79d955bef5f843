//! The leaf of a canvas: [`TaskCall`], one task with its arguments.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use celery_protocol::{EncodeError, Raw, Serializer};

use crate::task::{
    ArgumentEncoder, EncodedArguments, Params, Task, TaskArgs, Unique, arguments_of,
};

/// A task, its arguments, and what its declaration says about sending it.
#[derive(Clone)]
pub(crate) struct TaskCall {
    pub(crate) task: Cow<'static, str>,
    arguments: Arc<dyn Arguments>,
    /// Arguments given later, which Celery puts before the others.
    given: Vec<Raw<'static>>,
    pub(crate) queue: Option<Cow<'static, str>>,
    pub(crate) priority: Option<u8>,
    pub(crate) ignore_result: Option<bool>,
    /// Set where there must be one at a time.
    pub(crate) unique: Option<Box<(Unique, Params)>>,
    /// The task by whose name it is routed, where that is another one.
    pub(crate) routed_as: Option<Cow<'static, str>>,
}

trait Arguments: Send + Sync {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError>;
}

struct Typed<A> {
    args: A,
    params: &'static [&'static str],
}

impl<A: TaskArgs> Arguments for Typed<A> {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError> {
        self.args.write_call(self.params, writer)
    }
}

struct Untyped {
    args: Raw<'static>,
    kwargs: Raw<'static>,
}

impl Arguments for Untyped {
    fn write(&self, writer: &ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError> {
        writer.write(&self.args, &self.kwargs)
    }
}

impl TaskCall {
    /// A call of a declared task; `args` are for its last parameters, which
    /// `params` names.
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
            ..Self::of(Cow::Borrowed(task.name()), Arc::new(Typed { args, params }))
        }
    }

    /// A call of a task known by its name: `args` is an array, `kwargs` a map.
    pub(crate) fn untyped(
        task: impl Into<Cow<'static, str>>,
        args: Raw<'static>,
        kwargs: Raw<'static>,
    ) -> Self {
        Self::of(task.into(), Arc::new(Untyped { args, kwargs }))
    }

    fn of(task: Cow<'static, str>, arguments: Arc<dyn Arguments>) -> Self {
        Self {
            task,
            arguments,
            given: Vec::new(),
            queue: None,
            priority: None,
            ignore_result: None,
            unique: None,
            routed_as: None,
        }
    }

    /// Puts arguments before those that are there.
    pub(crate) fn give(&mut self, args: &[Raw<'static>]) {
        self.given.splice(..0, args.iter().cloned());
    }

    /// Writes the arguments in the form that a message needs.
    pub(crate) fn write(
        &self,
        writer: &ArgumentEncoder<'_>,
    ) -> Result<EncodedArguments, EncodeError> {
        if self.given.is_empty() {
            return self.arguments.write(writer);
        }
        let (args, kwargs) = self.raw_arguments()?;
        writer.write(&args, &kwargs)
    }

    /// The arguments by themselves: an array and a map.
    pub(crate) fn raw_arguments(&self) -> Result<(Raw<'static>, Raw<'static>), EncodeError> {
        let (args, kwargs) = arguments_of(&|writer| self.arguments.write(writer))?;
        if self.given.is_empty() {
            return Ok((args, kwargs));
        }
        let own = args.elements();
        let own = own.map_err(|error| EncodeError::new(error.to_string()))?;
        let all: Vec<_> = self.given.iter().chain(&own).collect();
        Ok((Raw::encode(Serializer::Json, &all)?, kwargs))
    }
}

impl fmt::Debug for TaskCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskCall").field(&self.task).finish()
    }
}
