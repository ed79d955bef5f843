//! The missing arguments of a canvas, as types.

use celery_protocol::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The missing arguments of a canvas that ignores the result of the step before, or whose arguments
/// are unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ignored;

/// The missing arguments of a step that accepts a result of type `T`.
#[diagnostic::on_unimplemented(
    message = "a step with the missing arguments `{Self}` does not accept a result of type `{T}`",
    note = "exactly one argument must be missing, of the type that the step before returns; `()` \
            means that none is missing: use `TASK.p((.., ))` with the last arguments, or `TASK.si((.., ))`"
)]
pub trait AcceptsResult<T> {}

impl<T> AcceptsResult<T> for (T,) {}
impl<T> AcceptsResult<T> for Ignored {}

/// A step that takes any value also accepts the results of a group.
impl<T> AcceptsResult<Vec<T>> for (Value,) {}

/// The missing arguments of a canvas that can be sent: there are none.
#[diagnostic::on_unimplemented(
    message = "this canvas has the missing arguments `{Self}` and cannot be sent",
    note = "supply them with `.given((.., ))`"
)]
pub trait NoMissingArgs {}

impl NoMissingArgs for () {}
impl NoMissingArgs for Ignored {}

/// The argument types of a task whose last ones are `Suffix`.
#[diagnostic::on_unimplemented(
    message = "`{Suffix}` are not the last arguments of a task that takes `{Self}`",
    note = "the result of the step before is the first argument, so that `p` takes the last ones: for \
            `(i64, String)` these are `(String,)` or `()`"
)]
pub trait PartialArgs<Suffix> {
    /// The argument types before `Suffix`.
    type Missing;
}

/// Implements [`PartialArgs`] for all proper suffixes of a tuple.
macro_rules! partial_args {
    ([$($missing:ident)*] []) => {
        partial_args!(@split [$($missing)*] []);
    };
    ([$($missing:ident)*] [$next:ident $($rest:ident)*]) => {
        partial_args!(@split [$($missing)*] [$next $($rest)*]);
        partial_args!([$($missing)* $next] [$($rest)*]);
    };
    (@split [] [$($suffix:ident)*]) => {};
    (@split [$($missing:ident)+] [$($suffix:ident)*]) => {
        impl<$($missing,)+ $($suffix),*> PartialArgs<($($suffix,)*)> for ($($missing,)+ $($suffix,)*)
        where
            $($missing: Serialize + DeserializeOwned + Send + Sync + 'static,)+
            $($suffix: Serialize + DeserializeOwned + Send + Sync + 'static,)*
        {
            type Missing = ($($missing,)+);
        }
    };
}

partial_args!([][A1]);
partial_args!([] [A1 A2]);
partial_args!([] [A1 A2 A3]);
partial_args!([] [A1 A2 A3 A4]);
partial_args!([] [A1 A2 A3 A4 A5]);
partial_args!([] [A1 A2 A3 A4 A5 A6]);
partial_args!([] [A1 A2 A3 A4 A5 A6 A7]);
partial_args!([] [A1 A2 A3 A4 A5 A6 A7 A8]);
