//! The error type of handlers: [`TaskError`].

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use celery_protocol::{Exception, Map, Raw, Value};

use crate::boundary::ChordResults;
use crate::canvas::{Canvas, NoMissingArgs, Signature};
use crate::execution::retry::{Changes, Retry, When};
use crate::task::{AutoRetry, Task};

/// The outcome of a task that does not return a value: a failure, a retry, a rejection, an ignored
/// result or a replacement.
///
/// Any `std::error::Error` is converted to a failure by `?`. Python readers of the result see an
/// exception named like the error's type, in a module named like its path;
/// [`named`](Self::named) sets both. Because of this conversion `TaskError` cannot implement
/// `std::error::Error` itself.
///
/// ```
/// use celery_runtime::TaskError;
///
/// fn parse(text: &str) -> Result<i64, TaskError> {
///     if text.is_empty() {
///         return Err(TaskError::exception("ValueError", "nothing to parse"));
///     }
///     Ok(text.parse()?)
/// }
/// # assert!(parse("").is_err() && parse("x").is_err() && parse("1").is_ok());
/// ```
pub struct TaskError(Box<TaskErrorKind>);

/// The variants of [`TaskError`].
pub(crate) enum TaskErrorKind {
    Failed(Failure),
    Retry(Retry),
    Reject {
        requeue: Requeue,
        reason: String,
    },
    Ignore,
    /// The task is replaced by this workflow.
    Replace(Box<Canvas>),
    /// The header of a chord is complete: its body is to be sent. Only `celery.chord_unlock`
    /// returns this.
    Join(Box<ReadyChord>),
}

/// A chord whose members have all ended, found by `celery.chord_unlock`.
pub(crate) struct ReadyChord {
    pub(crate) group_id: String,
    pub(crate) body: Raw<'static>,
    /// The results of the members, or the reason why the task has stopped polling for them.
    pub(crate) results: Result<ChordResults, String>,
}

/// What happens to the message of a rejected task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a message is either requeued or not"
)]
pub enum Requeue {
    /// The message returns to its queue and is delivered again.
    Yes,
    /// The message is dropped, or dead-lettered if the queue is configured for that.
    No,
}

/// An exception in the form of Python, and the Rust error that it was made from.
pub(crate) struct Failure {
    pub(crate) exception: Exception,
    pub(crate) source: Option<Box<dyn StdError + Send + Sync>>,
    /// What the child process reports about the error, if the task failed in one.
    pub(crate) remote: Option<RemoteFailure>,
}

/// Information about an error in a child process, where the error itself stays.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RemoteFailure {
    pub(crate) traceback: String,
    /// Whether the task's [`AutoRetry`] applies to the error.
    pub(crate) autoretried: bool,
}

impl TaskError {
    /// Creates a failure that Python sees as the builtin exception `name` (`"ValueError"`,
    /// `"KeyError"`, …) with one argument, `message`.
    pub fn exception(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::named("builtins", name, message)
    }

    /// Creates a failure that Python sees as `module.name(message)`. If the reader cannot import
    /// the class, Celery creates one with this name. If the name is not an exception
    /// (`builtins.str`), reading the result fails.
    pub fn named(
        module: impl Into<String>,
        name: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::failed(Exception::new(module, name, message))
    }

    /// Creates a failure with this exception, which may have several arguments of any type.
    pub fn failed(exception: Exception) -> Self {
        Self(Box::new(TaskErrorKind::Failed(Failure {
            exception,
            source: None,
            remote: None,
        })))
    }

    /// Creates a failure from an error of unknown type, such as a `Box<dyn Error>` or a converted
    /// `anyhow::Error`. Python sees a `RuntimeError`.
    pub fn boxed(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = error.into();
        Self(Box::new(TaskErrorKind::Failed(Failure {
            exception: Exception::new("builtins", "RuntimeError", source.to_string()),
            source: Some(source),
            remote: None,
        })))
    }

    /// Sets the exception of a failure that Python sees. Automatic retries still depend on the
    /// error that the failure was made from.
    ///
    /// ```
    /// use celery_protocol::Exception;
    /// use celery_runtime::TaskError;
    ///
    /// let error = std::fs::read("/nowhere").unwrap_err();
    /// let shown = Exception::new("builtins", "FileNotFoundError", error.to_string());
    /// let error = TaskError::from(error).shown_as(shown);
    /// # let _ = error;
    /// ```
    #[must_use]
    pub fn shown_as(mut self, exception: Exception) -> Self {
        if let TaskErrorKind::Failed(failure) = &mut *self.0 {
            failure.exception = exception;
        }
        self
    }

    /// Creates a request to retry the task. It runs again after its `retry_delay`, unless
    /// [`after`](Self::after) or [`at`](Self::at) sets another time.
    pub fn retry() -> Self {
        Self(Box::new(TaskErrorKind::Retry(Retry::default())))
    }

    /// Sets the delay of a retry.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        self.with_retry(|retry| retry.when = Some(When::After(delay)))
    }

    /// Sets the time of a retry.
    #[must_use]
    pub fn at(self, time: SystemTime) -> Self {
        self.with_retry(|retry| retry.when = Some(When::At(time)))
    }

    /// Sets the maximum number of retries, instead of the task's `max_retries`.
    #[must_use]
    pub fn at_most(self, retries: u32) -> Self {
        self.with_retry(|retry| retry.max_retries = Some(Some(retries)))
    }

    /// Sets the error that caused a retry. It is stored with the state RETRY, and the task fails
    /// with it when no retries are left.
    #[must_use]
    pub fn because(self, error: impl Into<Self>) -> Self {
        let failure = match *error.into().0 {
            TaskErrorKind::Failed(failure) => Some(failure),
            _ => None,
        };
        self.with_retry(|retry| retry.because = failure)
    }

    /// Sets the positional arguments of a retry. The keyword arguments of this execution are kept,
    /// except those of parameters that the new arguments fill.
    ///
    /// ```
    /// use celery_runtime::TaskError;
    ///
    /// // `copy(source, target, part=0)` continues with the next part.
    /// # let part = 1;
    /// let error = TaskError::retry().args(["a".into(), "b".into(), (part + 1).into()]);
    /// # let _ = error;
    /// ```
    #[must_use]
    pub fn args(self, args: impl IntoIterator<Item = Value>) -> Self {
        self.with_retry(|retry| retry.changes.args = Some(args.into_iter().collect()))
    }

    /// Sets the keyword arguments of a retry, which replace all those of this execution. The
    /// positional arguments of this execution are kept, except that one whose parameter is named
    /// here gets the new value.
    #[must_use]
    pub fn kwargs(self, kwargs: impl Into<Map>) -> Self {
        self.with_retry(|retry| retry.changes.kwargs = Some(kwargs.into()))
    }

    /// Adds a header to the message of a retry, besides those of this execution.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with_retry(|retry| {
            retry.changes.headers.insert(name.into(), value.into());
        })
    }

    /// Sets the time after which a retry is not started any more; unchanged by default.
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        self.with_retry(|retry| retry.changes.expires = Some(time))
    }

    /// Creates a rejection of the message; see [`Requeue`].
    pub fn reject(reason: impl Into<String>, requeue: Requeue) -> Self {
        Self(Box::new(TaskErrorKind::Reject {
            requeue,
            reason: reason.into(),
        }))
    }

    /// Replaces this task by another task or workflow, which gets this task's id, its position in
    /// a chain, group or chord, its callbacks and its errbacks. This execution stores no result;
    /// the result of the replacement is stored under this task's id. The result of a group is a
    /// list.
    ///
    /// [`Task::replaced_by`](crate::Task::replaced_by) also checks the type of the result.
    ///
    /// ```
    /// use celery_runtime::{Task, TaskError};
    ///
    /// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    ///
    /// async fn add_all(numbers: Vec<i64>) -> Result<i64, TaskError> {
    ///     match numbers.as_slice() {
    ///         [] => Ok(0),
    ///         [one] => Ok(*one),
    ///         [first, rest @ ..] => {
    ///             let all = rest.iter().fold(ADD.s((*first, 0)), |sum, n| sum.then(ADD.p((*n,))));
    ///             Err(TaskError::replace(all))
    ///         }
    ///     }
    /// }
    /// ```
    pub fn replace(canvas: impl Into<Canvas>) -> Self {
        Self(Box::new(TaskErrorKind::Replace(Box::new(canvas.into()))))
    }

    /// Creates the request to send the body of a chord.
    pub(crate) fn join(chord: ReadyChord) -> Self {
        Self(Box::new(TaskErrorKind::Join(Box::new(chord))))
    }

    /// Ends the task without storing a result.
    pub fn ignore() -> Self {
        Self(Box::new(TaskErrorKind::Ignore))
    }

    /// Converts the error to a failure of the task that has called this one as a function. A retry
    /// becomes its cause, as in Celery.
    pub(crate) fn into_call_failure(self) -> Self {
        let message = self.to_string();
        match *self.0 {
            TaskErrorKind::Failed(failure) => Self::from_kind(TaskErrorKind::Failed(failure)),
            TaskErrorKind::Retry(retry) => match retry.because {
                Some(cause) => Self::from_kind(TaskErrorKind::Failed(cause)),
                None => Self::named("celery.exceptions", "Retry", message),
            },
            TaskErrorKind::Reject { reason, .. } => {
                Self::named("celery.exceptions", "Reject", reason)
            }
            TaskErrorKind::Ignore | TaskErrorKind::Replace(_) | TaskErrorKind::Join(_) => {
                Self::named("celery.exceptions", "Ignore", message)
            }
        }
    }

    pub(crate) fn into_kind(self) -> TaskErrorKind {
        *self.0
    }

    pub(crate) fn from_kind(kind: TaskErrorKind) -> Self {
        Self(Box::new(kind))
    }

    /// Returns the changes of a retry; `None` for other errors.
    pub(crate) fn changes_mut(&mut self) -> Option<&mut Changes> {
        match &mut *self.0 {
            TaskErrorKind::Retry(retry) => Some(&mut retry.changes),
            _ => None,
        }
    }

    fn with_retry(mut self, change: impl FnOnce(&mut Retry)) -> Self {
        if let TaskErrorKind::Retry(retry) = &mut *self.0 {
            change(retry);
        }
        self
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self(Box::new(TaskErrorKind::Failed(Failure::from_error(error))))
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            TaskErrorKind::Failed(failure) => write!(f, "Failed({})", failure.exception),
            TaskErrorKind::Retry(retry) => write!(f, "Retry({:?})", retry.when),
            TaskErrorKind::Reject { requeue, reason } => {
                write!(f, "Reject({requeue:?}, {reason:?})")
            }
            TaskErrorKind::Ignore => f.write_str("Ignore"),
            TaskErrorKind::Replace(canvas) => write!(f, "Replace({})", canvas.task()),
            TaskErrorKind::Join(chord) => write!(f, "Join({})", chord.group_id),
        }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            TaskErrorKind::Failed(failure) => write!(f, "{}", failure.exception),
            TaskErrorKind::Retry(_) => f.write_str("retry requested"),
            TaskErrorKind::Reject { reason, .. } => write!(f, "rejected: {reason}"),
            TaskErrorKind::Ignore => f.write_str("result ignored"),
            TaskErrorKind::Replace(canvas) => write!(f, "replaced by {}", canvas.task()),
            TaskErrorKind::Join(chord) => write!(f, "chord {} is ready", chord.group_id),
        }
    }
}

impl Failure {
    fn from_error<E: StdError + Send + Sync + 'static>(error: E) -> Self {
        let (module, name) = python_name(std::any::type_name::<E>());
        Self {
            exception: Exception::new(module, name, error.to_string()),
            source: Some(Box::new(error)),
            remote: None,
        }
    }

    /// Returns whether `auto` applies to the error.
    pub(crate) fn is_retried_by(&self, auto: &AutoRetry) -> bool {
        match &self.remote {
            Some(remote) => remote.autoretried,
            None => auto.applies_to(self.source.as_deref()),
        }
    }

    /// Returns the text for the result's `traceback`: the exception and its causes, outermost last,
    /// in the format of Python's chained exceptions.
    pub(crate) fn traceback(&self) -> String {
        if let Some(remote) = &self.remote {
            return remote.traceback.clone();
        }
        let mut causes = Vec::new();
        let mut next = self.source.as_deref().and_then(StdError::source);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        let mut text = String::new();
        for cause in causes.iter().rev() {
            text.push_str(cause);
            text.push_str(
                "\n\nThe above exception was the direct cause of the following exception:\n\n",
            );
        }
        text.push_str(&self.exception.to_string());
        text.push('\n');
        text
    }
}

/// Converts a Rust path to a module and a class of Python: `std::num::error::ParseIntError` becomes
/// `std.num.error` and `ParseIntError`. Type parameters are omitted.
fn python_name(type_name: &str) -> (String, String) {
    let path = type_name.split('<').next().unwrap_or(type_name);
    match path.rsplit_once("::") {
        Some((module, name)) => (module.replace("::", "."), name.to_owned()),
        None => ("builtins".to_owned(), "RuntimeError".to_owned()),
    }
}

impl<A, R> Task<A, R> {
    /// Returns the error with which a running task replaces itself by a workflow
    /// that has the same result type; see [`TaskError::replace`].
    ///
    /// ```
    /// # use celery_runtime::{Task, TaskError};
    /// # const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    /// const DOUBLE: Task<(i64,), i64> = Task::new("tasks.double").params(&["x"]);
    ///
    /// async fn double(x: i64) -> Result<i64, TaskError> {
    ///     Err(DOUBLE.replaced_by(ADD.s((x, x))))
    /// }
    /// ```
    pub fn replaced_by<In: NoMissingArgs>(self, replacement: Signature<R, In>) -> TaskError {
        TaskError::replace(replacement)
    }
}

#[cfg(test)]
mod tests {
    use celery_protocol::Value;

    use super::*;

    fn failure(error: TaskError) -> Failure {
        match error.into_kind() {
            TaskErrorKind::Failed(failure) => failure,
            _ => panic!("not a failure"),
        }
    }

    #[test]
    fn converted_error_has_type_name_and_message() {
        let failed = failure("x".parse::<i64>().unwrap_err().into());
        assert_eq!(failed.exception.exc_type, "ParseIntError");
        assert!(
            failed.exception.exc_module.unwrap().contains("num"),
            "the module is the path of the type"
        );
        assert_eq!(
            failed.exception.exc_message,
            [Value::from("invalid digit found in string")]
        );
    }

    #[test]
    fn traceback_lists_causes_innermost_first() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct OuterError(#[source] std::io::Error);

        let failed = failure(OuterError(std::io::Error::other("inner")).into());
        let text = failed.traceback();
        assert!(text.starts_with("inner\n\nThe above exception"), "{text}");
        assert!(text.ends_with("OuterError('outer')\n"), "{text}");
    }

    #[test]
    fn retry_methods_set_delay_limit_and_cause() {
        let error = TaskError::retry()
            .after(Duration::from_secs(5))
            .at_most(7)
            .because(std::io::Error::other("busy"));
        let TaskErrorKind::Retry(retry) = error.into_kind() else {
            panic!("not a retry")
        };
        assert!(matches!(retry.when, Some(When::After(delay)) if delay.as_secs() == 5));
        assert_eq!(retry.max_retries, Some(Some(7)));
        assert_eq!(
            retry.because.unwrap().exception.exc_message,
            [Value::from("busy")]
        );
    }
}
