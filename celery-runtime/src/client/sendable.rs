//! The argument of [`Client::apply`](crate::client::Client::apply): [`Sendable`].

use std::sync::Arc;

use celery_protocol::ResultTree;

use crate::canvas::{Canvas, Group, NoMissingArgs, Signature};
use crate::client::group::GroupResult;
use crate::client::reader::ResultReader;
use crate::client::result::{AnyResult, AsyncResult};

/// A canvas that can be sent, because it has no missing arguments.
///
/// Sending a [`Signature`] returns an [`AsyncResult`], sending a [`Group`] a [`GroupResult`], and
/// sending a [`Canvas`], which has no types, an [`AnyResult`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent",
    note = "only a `Signature`, `Group` or `Canvas` can; supply the missing arguments of a \
            partial one with `.given((.., ))`"
)]
pub trait Sendable {
    /// The type of the result.
    type Result;

    /// Converts it to a canvas.
    #[doc(hidden)]
    fn into_canvas(self) -> Canvas;

    /// Creates the result of the sent canvas.
    #[doc(hidden)]
    fn result(tree: ResultTree, source: ResultSource) -> Self::Result;
}

/// The backend from which results are read.
#[derive(Clone, Debug)]
pub struct ResultSource(pub(crate) Arc<ResultReader>);

impl<R, In: NoMissingArgs> Sendable for Signature<R, In> {
    type Result = AsyncResult<R>;

    fn into_canvas(self) -> Canvas {
        self.into()
    }

    fn result(tree: ResultTree, source: ResultSource) -> AsyncResult<R> {
        AsyncResult::of(tree, source.0)
    }
}

impl<Out, In: NoMissingArgs> Sendable for Group<Out, In> {
    type Result = GroupResult<Out>;

    fn into_canvas(self) -> Canvas {
        self.into()
    }

    fn result(tree: ResultTree, source: ResultSource) -> GroupResult<Out> {
        GroupResult::of(tree, source.0)
    }
}

impl Sendable for Canvas {
    type Result = AnyResult;

    fn into_canvas(self) -> Canvas {
        self
    }

    fn result(tree: ResultTree, source: ResultSource) -> AnyResult {
        AnyResult::of(tree, source.0)
    }
}
