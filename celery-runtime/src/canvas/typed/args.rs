//! What a canvas waits for, as types.

use celery_protocol::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Whatever comes before: it is thrown away, or nothing is known about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ignored;

/// What a step waits for, if a result of type `T` is that.
#[diagnostic::on_unimplemented(
    message = "a step that waits for `{Self}` does not take a result of type `{T}`",
    note = "one argument must be missing, of the type that the step before returns; `()` means \
            that none is: use `TASK.p((.., ))` with the last arguments, or `TASK.si((.., ))`"
)]
pub trait AcceptsResult<T> {}

impl<T> AcceptsResult<T> for (T,) {}
impl<T> AcceptsResult<T> for Ignored {}

/// What takes any value takes the results of a group, too.
impl<T> AcceptsResult<Vec<T>> for (Value,) {}

/// What a canvas waits for, if that is nothing: it can be sent.
#[diagnostic::on_unimplemented(
    message = "this canvas waits for `{Self}` and cannot be sent",
    note = "give it the missing arguments with `.given((.., ))`"
)]
pub trait NoMissingArgs {}

impl NoMissingArgs for () {}
impl NoMissingArgs for Ignored {}

/// The arguments of a task of which the last ones, `Suffix`, are there.
#[diagnostic::on_unimplemented(
    message = "`{Suffix}` are not the last arguments of a task that takes `{Self}`",
    note = "a result of a step before comes first, so that `p` takes the last arguments: of \
            `(i64, String)` these are `(String,)` or `()`"
)]
pub trait PartialArgs<Suffix> {
    /// Those before them.
    type Missing;
}

/// All wire_style to cut the arguments in two, but for the one that leaves nothing out.
macro_rules! cuts {
    ([$($missing:ident)*] []) => {
        cuts!(@cut [$($missing)*] []);
    };
    ([$($missing:ident)*] [$next:ident $($rest:ident)*]) => {
        cuts!(@cut [$($missing)*] [$next $($rest)*]);
        cuts!([$($missing)* $next] [$($rest)*]);
    };
    (@cut [] [$($suffix:ident)*]) => {};
    (@cut [$($missing:ident)+] [$($suffix:ident)*]) => {
        impl<$($missing,)+ $($suffix),*> PartialArgs<($($suffix,)*)> for ($($missing,)+ $($suffix,)*)
        where
            $($missing: Serialize + DeserializeOwned + Send + Sync + 'static,)+
            $($suffix: Serialize + DeserializeOwned + Send + Sync + 'static,)*
        {
            type Missing = ($($missing,)+);
        }
    };
}

cuts!([][A1]);
cuts!([] [A1 A2]);
cuts!([] [A1 A2 A3]);
cuts!([] [A1 A2 A3 A4]);
cuts!([] [A1 A2 A3 A4 A5]);
cuts!([] [A1 A2 A3 A4 A5 A6]);
cuts!([] [A1 A2 A3 A4 A5 A6 A7]);
cuts!([] [A1 A2 A3 A4 A5 A6 A7 A8]);
