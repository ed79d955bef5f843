//! The functions that can be handlers: [`Handler`] and [`BlockingHandler`].

use std::future::Future;

use crate::execution::context::Context;
use crate::execution::error::TaskError;
use crate::execution::failed::FailedTask;
use crate::task::Kwargs;

/// An async function that runs a task with arguments `A` and result `R`.
///
/// The function takes the arguments of the declaration, optionally after a
/// [`Context<S>`](Context), and returns a `Result` whose error is a [`TaskError`] or any
/// `std::error::Error`. The type parameter `M` distinguishes the two forms and is always inferred.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle a task with arguments `{A}` and result `{R}`",
    label = "expected an async function that takes the elements of `{A}` and returns `Result<{R}, _>`",
    note = "a `Context` may come first; the error must be a `TaskError` or implement `std::error::Error`"
)]
pub trait Handler<M, A, R, S>: Send + Sync + 'static {
    /// Starts the task and returns its future.
    fn call(
        &self,
        context: Context<S>,
        args: A,
    ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static;
}

/// A blocking function that runs a task on a thread of its own; see [`Handler`] for its signature.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle a task with arguments `{A}` and result `{R}`",
    label = "expected a function that takes the elements of `{A}` and returns `Result<{R}, _>`",
    note = "a `Context` may come first; the error must be a `TaskError` or implement `std::error::Error`"
)]
pub trait BlockingHandler<M, A, R, S>: Send + Sync + 'static {
    /// Runs the task.
    ///
    /// # Errors
    ///
    /// Returns the error of the function.
    fn call(&self, context: Context<S>, args: A) -> Result<R, TaskError>;
}

/// A marker of handlers without a context.
#[derive(Debug)]
pub struct Plain;

/// A marker of handlers whose first argument is the context.
#[derive(Debug)]
pub struct WithContext;

/// A marker of errbacks, whose first argument is the failed task.
#[derive(Debug)]
pub struct OfFailure;

async fn convert_error<R, E: Into<TaskError>>(
    future: impl Future<Output = Result<R, E>>,
) -> Result<R, TaskError> {
    future.await.map_err(Into::into)
}

/// Implements the traits for one arity: async and blocking, with and without context, and
/// errbacks.
macro_rules! handlers {
    ($([$args:pat => $args_type:ty; $($name:ident: $type:ident),*; $($param:ident),*])*) => {$(
        impl<F, Fut, R, E, S, $($param),*> Handler<Plain, $args_type, R, S> for F
        where
            F: Fn($($type),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<R, E>> + Send + 'static,
            E: Into<TaskError> + 'static,
            R: 'static,
        {
            fn call(
                &self,
                _context: Context<S>,
                $args: $args_type,
            ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static {
                convert_error(self($($name),*))
            }
        }

        impl<F, Fut, R, E, S, $($param),*> Handler<WithContext, $args_type, R, S> for F
        where
            F: Fn(Context<S>, $($type),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<R, E>> + Send + 'static,
            E: Into<TaskError> + 'static,
            R: 'static,
        {
            fn call(
                &self,
                context: Context<S>,
                $args: $args_type,
            ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static {
                convert_error(self(context, $($name),*))
            }
        }

        impl<F, Fut, R, E, S, $($param),*> Handler<OfFailure, $args_type, R, S> for F
        where
            F: Fn(FailedTask<S>, $($type),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<R, E>> + Send + 'static,
            E: Into<TaskError> + 'static,
            R: 'static,
        {
            fn call(
                &self,
                context: Context<S>,
                $args: $args_type,
            ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static {
                convert_error(self(FailedTask::new(context), $($name),*))
            }
        }

        impl<F, R, E, S, $($param),*> BlockingHandler<Plain, $args_type, R, S> for F
        where
            F: Fn($($type),*) -> Result<R, E> + Send + Sync + 'static,
            E: Into<TaskError>,
        {
            fn call(&self, _context: Context<S>, $args: $args_type) -> Result<R, TaskError> {
                self($($name),*).map_err(Into::into)
            }
        }

        impl<F, R, E, S, $($param),*> BlockingHandler<WithContext, $args_type, R, S> for F
        where
            F: Fn(Context<S>, $($type),*) -> Result<R, E> + Send + Sync + 'static,
            E: Into<TaskError>,
        {
            fn call(&self, context: Context<S>, $args: $args_type) -> Result<R, TaskError> {
                self(context, $($name),*).map_err(Into::into)
            }
        }
    )*};
}

handlers! {
    [() => (); ; ]
    [(a1,) => (A1,); a1: A1; A1]
    [(a1, a2) => (A1, A2); a1: A1, a2: A2; A1, A2]
    [(a1, a2, a3) => (A1, A2, A3); a1: A1, a2: A2, a3: A3; A1, A2, A3]
    [(a1, a2, a3, a4) => (A1, A2, A3, A4); a1: A1, a2: A2, a3: A3, a4: A4; A1, A2, A3, A4]
    [(a1, a2, a3, a4, a5) => (A1, A2, A3, A4, A5);
        a1: A1, a2: A2, a3: A3, a4: A4, a5: A5; A1, A2, A3, A4, A5]
    [(a1, a2, a3, a4, a5, a6) => (A1, A2, A3, A4, A5, A6);
        a1: A1, a2: A2, a3: A3, a4: A4, a5: A5, a6: A6; A1, A2, A3, A4, A5, A6]
    [(a1, a2, a3, a4, a5, a6, a7) => (A1, A2, A3, A4, A5, A6, A7);
        a1: A1, a2: A2, a3: A3, a4: A4, a5: A5, a6: A6, a7: A7; A1, A2, A3, A4, A5, A6, A7]
    [(a1, a2, a3, a4, a5, a6, a7, a8) => (A1, A2, A3, A4, A5, A6, A7, A8);
        a1: A1, a2: A2, a3: A3, a4: A4, a5: A5, a6: A6, a7: A7, a8: A8;
        A1, A2, A3, A4, A5, A6, A7, A8]
}

impl<F, Fut, T, R, E, S> Handler<Plain, Kwargs<T>, R, S> for F
where
    F: Fn(Kwargs<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    E: Into<TaskError> + 'static,
    R: 'static,
{
    fn call(
        &self,
        _context: Context<S>,
        args: Kwargs<T>,
    ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static {
        convert_error(self(args))
    }
}

impl<F, Fut, T, R, E, S> Handler<WithContext, Kwargs<T>, R, S> for F
where
    F: Fn(Context<S>, Kwargs<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    E: Into<TaskError> + 'static,
    R: 'static,
{
    fn call(
        &self,
        context: Context<S>,
        args: Kwargs<T>,
    ) -> impl Future<Output = Result<R, TaskError>> + Send + 'static {
        convert_error(self(context, args))
    }
}

impl<F, T, R, E, S> BlockingHandler<Plain, Kwargs<T>, R, S> for F
where
    F: Fn(Kwargs<T>) -> Result<R, E> + Send + Sync + 'static,
    E: Into<TaskError>,
{
    fn call(&self, _context: Context<S>, args: Kwargs<T>) -> Result<R, TaskError> {
        self(args).map_err(Into::into)
    }
}

impl<F, T, R, E, S> BlockingHandler<WithContext, Kwargs<T>, R, S> for F
where
    F: Fn(Context<S>, Kwargs<T>) -> Result<R, E> + Send + Sync + 'static,
    E: Into<TaskError>,
{
    fn call(&self, context: Context<S>, args: Kwargs<T>) -> Result<R, TaskError> {
        self(context, args).map_err(Into::into)
    }
}
