//! What handlers fail with: [`TaskError`].

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use celery_protocol::{Exception, Map, Raw, Value};

use crate::boundary::ChordResults;
use crate::canvas::{Canvas, NoMissingArgs, Signature};
use crate::execution::retry::{Changes, Retry, When};
use crate::task::{AutoRetry, Task};

/// How a task ends when it does not return a value.
///
/// Any `std::error::Error` becomes one with `?`; Python readers of the result
/// then see an exception named like the error's type, in a module named like
/// its path. [`named`](Self::named) chooses both. For this reason `TaskError`
/// itself does not implement `std::error::Error`: the two exclude each other.
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

pub(crate) enum TaskErrorKind {
    Failed(Failure),
    Retry(Retry),
    Reject {
        requeue: Requeue,
        reason: String,
    },
    Ignore,
    /// Another workflow takes the task's place.
    Replace(Box<Canvas>),
    /// The header of a chord is through, and its body is next.
    Join(Box<ReadyChord>),
}

/// A chord whose parts have all ended, found out by a task that looked.
pub(crate) struct ReadyChord {
    pub(crate) group_id: String,
    pub(crate) body: Raw<'static>,
    /// Or why nobody looks any more.
    pub(crate) results: Result<ChordResults, String>,
}

/// Whether a rejected message goes back to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "it does or it does not")]
pub enum Requeue {
    /// Back to the queue, to be delivered again.
    Yes,
    /// Dropped, or dead-lettered where the broker is set up to.
    No,
}

/// An exception as Python reads it, and the Rust error behind it.
pub(crate) struct Failure {
    pub(crate) exception: Exception,
    pub(crate) source: Option<Box<dyn StdError + Send + Sync>>,
    /// What was found out about the error where it is, if that is another
    /// process.
    pub(crate) account: Option<RemoteFailure>,
}

/// What is left of an error that stayed in the process where it happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RemoteFailure {
    pub(crate) traceback: String,
    /// Whether the task is retried by itself because of it.
    pub(crate) autoretried: bool,
}

impl TaskError {
    /// A failure that Python sees as the builtin exception `name`
    /// (`"ValueError"`, `"KeyError"`, …) with one argument, `message`.
    pub fn exception(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::named("builtins", name, message)
    }

    /// A failure that Python sees as `module.name(message)`. A class that the
    /// reader cannot import is made up for it; a name that is no exception
    /// there (`builtins.str`) makes its reader fail.
    pub fn named(
        module: impl Into<String>,
        name: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::failed(Exception::new(module, name, message))
    }

    /// A failure with this exception, for several arguments or other types.
    pub fn failed(exception: Exception) -> Self {
        Self(Box::new(TaskErrorKind::Failed(Failure {
            exception,
            source: None,
            account: None,
        })))
    }

    /// A failure from an error whose type is not known here, such as
    /// `Box<dyn Error>` or what `anyhow::Error` turns into. Python sees a
    /// `RuntimeError`.
    pub fn boxed(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = error.into();
        Self(Box::new(TaskErrorKind::Failed(Failure {
            exception: Exception::new("builtins", "RuntimeError", source.to_string()),
            source: Some(source),
            account: None,
        })))
    }

    /// For a failure: shows it to Python as this exception. The error that it
    /// was made from still decides whether the task is retried by itself.
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

    /// Run the task again, after its `retry_delay` unless told otherwise by
    /// [`after`](Self::after) or [`at`](Self::at).
    pub fn retry() -> Self {
        Self(Box::new(TaskErrorKind::Retry(Retry::default())))
    }

    /// For a retry: how long to wait.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        self.retrying(|retry| retry.when = Some(When::After(delay)))
    }

    /// For a retry: when to run again.
    #[must_use]
    pub fn at(self, time: SystemTime) -> Self {
        self.retrying(|retry| retry.when = Some(When::At(time)))
    }

    /// For a retry: how often at most, instead of the task's `max_retries`.
    #[must_use]
    pub fn at_most(self, retries: u32) -> Self {
        self.retrying(|retry| retry.max_retries = Some(Some(retries)))
    }

    /// For a retry: the error that caused it. It is what the result shows
    /// meanwhile, and what the task fails with when no retry is left.
    #[must_use]
    pub fn because(self, error: impl Into<Self>) -> Self {
        let failure = match *error.into().0 {
            TaskErrorKind::Failed(failure) => Some(failure),
            _ => None,
        };
        self.retrying(|retry| retry.because = failure)
    }

    /// For a retry: the positional arguments to run with. Keyword arguments of
    /// this run stay unless these take their place.
    ///
    /// ```
    /// use celery_runtime::TaskError;
    ///
    /// // `copy(source, target, part=0)` goes on with the next part.
    /// # let part = 1;
    /// let error = TaskError::retry().args(["a".into(), "b".into(), (part + 1).into()]);
    /// # let _ = error;
    /// ```
    #[must_use]
    pub fn args(self, args: impl IntoIterator<Item = Value>) -> Self {
        self.retrying(|retry| retry.changes.args = Some(args.into_iter().collect()))
    }

    /// For a retry: the keyword arguments to run with, in place of all those of
    /// this run. Positional arguments of this run stay; one that is named here
    /// gets its new value.
    #[must_use]
    pub fn kwargs(self, kwargs: impl Into<Map>) -> Self {
        self.retrying(|retry| retry.changes.kwargs = Some(kwargs.into()))
    }

    /// For a retry: a header of its message, besides those of this run's.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.retrying(|retry| {
            retry.changes.headers.insert(name.into(), value.into());
        })
    }

    /// For a retry: when it is too late for it. Otherwise that stays as it was.
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        self.retrying(|retry| retry.changes.expires = Some(time))
    }

    /// Refuse the message; see [`Requeue`].
    pub fn reject(reason: impl Into<String>, requeue: Requeue) -> Self {
        Self(Box::new(TaskErrorKind::Reject {
            requeue,
            reason: reason.into(),
        }))
    }

    /// Let another task or workflow take this one's place: it gets this task's
    /// id, its place in a chain, group or chord, its callbacks and errbacks. This
    /// run stores no result; what is waited for is that of the replacement. A
    /// group's results are a list.
    ///
    /// [`Task::replaced_by`](crate::Task::replaced_by) is the same with the type
    /// of the result checked.
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

    pub(crate) fn join(joint: ReadyChord) -> Self {
        Self(Box::new(TaskErrorKind::Join(Box::new(joint))))
    }

    /// Be done without storing any result.
    pub fn ignore() -> Self {
        Self(Box::new(TaskErrorKind::Ignore))
    }

    /// What it is to the task that has called this one as a function: a failure,
    /// whatever it asks for. A retry is its cause, as in Celery.
    pub(crate) fn of_a_call(self) -> Self {
        let told = self.to_string();
        match *self.0 {
            TaskErrorKind::Failed(failure) => Self::of_kind(TaskErrorKind::Failed(failure)),
            TaskErrorKind::Retry(retry) => match retry.because {
                Some(cause) => Self::of_kind(TaskErrorKind::Failed(cause)),
                None => Self::named("celery.exceptions", "Retry", told),
            },
            TaskErrorKind::Reject { reason, .. } => {
                Self::named("celery.exceptions", "Reject", reason)
            }
            TaskErrorKind::Ignore | TaskErrorKind::Replace(_) | TaskErrorKind::Join(_) => {
                Self::named("celery.exceptions", "Ignore", told)
            }
        }
    }

    pub(crate) fn into_kind(self) -> TaskErrorKind {
        *self.0
    }

    pub(crate) fn of_kind(kind: TaskErrorKind) -> Self {
        Self(Box::new(kind))
    }

    /// What is different in a retry, if it is one.
    pub(crate) fn changes_mut(&mut self) -> Option<&mut Changes> {
        match &mut *self.0 {
            TaskErrorKind::Retry(retry) => Some(&mut retry.changes),
            _ => None,
        }
    }

    fn retrying(mut self, change: impl FnOnce(&mut Retry)) -> Self {
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
            TaskErrorKind::Join(joint) => write!(f, "Join({})", joint.group_id),
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
            TaskErrorKind::Join(joint) => write!(f, "chord {} goes on", joint.group_id),
        }
    }
}

impl Failure {
    fn from_error<E: StdError + Send + Sync + 'static>(error: E) -> Self {
        let (module, name) = python_name(std::any::type_name::<E>());
        Self {
            exception: Exception::new(module, name, error.to_string()),
            source: Some(Box::new(error)),
            account: None,
        }
    }

    /// Whether the task's automatic retry is meant for it.
    pub(crate) fn is_retried_by(&self, auto: &AutoRetry) -> bool {
        match &self.account {
            Some(account) => account.autoretried,
            None => auto.applies_to(self.source.as_deref()),
        }
    }

    /// The text for the result's `traceback`: the exception and its causes,
    /// outermost last, in the words that Python uses for chained exceptions.
    pub(crate) fn traceback(&self) -> String {
        if let Some(account) = &self.account {
            return account.traceback.clone();
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

/// `std::num::error::ParseIntError` as Python would call it: module
/// `std.num.error`, class `ParseIntError`. Type parameters are left out.
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
    fn any_error_keeps_its_type_and_message() {
        let failed = failure("x".parse::<i64>().unwrap_err().into());
        assert_eq!(failed.exception.exc_type, "ParseIntError");
        assert!(
            failed.exception.exc_module.unwrap().contains("num"),
            "the module says where it comes from"
        );
        assert_eq!(
            failed.exception.exc_message,
            [Value::from("invalid digit found in string")]
        );
    }

    #[test]
    fn causes_are_told_in_order() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct OuterError(#[source] std::io::Error);

        let failed = failure(OuterError(std::io::Error::other("inner")).into());
        let text = failed.traceback();
        assert!(text.starts_with("inner\n\nThe above exception"), "{text}");
        assert!(text.ends_with("OuterError('outer')\n"), "{text}");
    }

    #[test]
    fn a_retry_is_described_in_one_expression() {
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
