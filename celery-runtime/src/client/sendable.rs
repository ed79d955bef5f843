//! What [`Client::apply`](crate::client::Client::apply) takes, and what it answers.

use std::sync::Arc;

use celery_protocol::ResultTree;

use crate::canvas::{Canvas, Group, NoMissingArgs, Signature};
use crate::client::group::GroupResult;
use crate::client::result::{AnyResult, AsyncResult, Reader};

/// A canvas that can be sent: it waits for nothing.
///
/// A [`Signature`] answers an [`AsyncResult`], a [`Group`] a [`GroupResult`], and
/// a [`Canvas`], whose type says nothing, one of both.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent",
    note = "only a `Signature`, `Group` or `Canvas` can; give a partial one the missing arguments \
            with `.given((.., ))`"
)]
pub trait Sendable {
    /// What reads its result.
    type Result;

    /// Without types.
    #[doc(hidden)]
    fn into_canvas(self) -> Canvas;

    /// The result of what was sent.
    #[doc(hidden)]
    fn result(tree: ResultTree, source: ResultSource) -> Self::Result;
}

/// Where results are read.
#[derive(Clone, Debug)]
pub struct ResultSource(pub(crate) Arc<Reader>);

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
