//! Groups of canvases: [`Group`].

use std::fmt;
use std::marker::PhantomData;

use celery_protocol::Value;
use serde::Serialize;

use crate::canvas::node::Canvas;
use crate::canvas::stamp::StampingVisitor;
use crate::canvas::typed::{AcceptsResult, Ignored, Signature, Then};
use crate::task::TaskArgs;

/// Canvases that run in parallel, or a chain that ends in such a group.
///
/// `Out` is the type of the results: a `Vec`, or a tuple for members of different types. `In` are
/// the missing arguments of the members, as for [`Signature`]. Created by [`group`]. A step
/// [after](Group::then) a group receives all results as one list: they form a chord.
pub struct Group<Out, In = ()> {
    canvas: Canvas,
    types: PhantomData<fn(In) -> Out>,
}

/// Creates a group: any number of signatures of one type, or a tuple of up to eight signatures. All
/// members have the same missing arguments.
///
/// ```
/// use celery_runtime::{Task, group};
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
/// const XSUM: Task<(Vec<i64>,), i64> = Task::new("tasks.xsum").params(&["numbers"]);
/// const SHOUT: Task<(String,), String> = Task::new("tasks.shout").params(&["text"]);
///
/// let ninety = group((0..10).map(|i| ADD.s((i, i)))).then(XSUM.p(()));
/// let both = group((ADD.s((1, 2)), SHOUT.s(("hello".to_owned(),))));
/// # let _ = (ninety, both);
/// ```
pub fn group<M: Members<Shape>, Shape>(members: M) -> Group<M::Out, M::In> {
    Group::from_members(Canvas::group(members.into_canvases()))
}

/// The members of a [`group`]: an iterator of signatures of one type, or a tuple of signatures.
/// `Shape` distinguishes the two and is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a group",
    note = "use an iterator of signatures of one type, or a tuple of at most eight signatures; all \
            of them must have the same missing arguments"
)]
pub trait Members<Shape> {
    /// The type of all results.
    type Out;
    /// The missing arguments of each member.
    type In;

    /// Converts the members to canvases.
    #[doc(hidden)]
    fn into_canvases(self) -> Vec<Canvas>;
}

/// A marker of members of one type.
#[derive(Debug)]
pub struct Alike;

/// A marker of members of different types.
#[derive(Debug)]
pub struct Mixed;

impl<I, T, In> Members<Alike> for I
where
    I: IntoIterator<Item = Signature<T, In>>,
{
    type Out = Vec<T>;
    type In = In;

    fn into_canvases(self) -> Vec<Canvas> {
        self.into_iter().map(Canvas::from).collect()
    }
}

/// Implements [`Members`] for tuples.
macro_rules! mixed {
    ($(($($name:ident)*))*) => {$(
        impl<In, $($name),*> Members<Mixed> for ($(Signature<$name, In>,)*) {
            type Out = ($($name,)*);
            type In = In;

            #[allow(non_snake_case, reason = "the type names double as variable names")]
            fn into_canvases(self) -> Vec<Canvas> {
                let ($($name,)*) = self;
                vec![$(Canvas::from($name)),*]
            }
        }
    )*};
}

mixed! {
    (A)
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E F)
    (A B C D E F G)
    (A B C D E F G H)
}

impl<Out, In> Group<Out, In> {
    pub(super) fn from_members(canvas: Canvas) -> Self {
        Self::from_canvas(canvas.keep_group())
    }

    fn from_canvas(canvas: Canvas) -> Self {
        Self {
            canvas,
            types: PhantomData,
        }
    }

    /// Appends `next`, which receives the list of all results: the body of a chord.
    #[must_use]
    pub fn then<S: Then<Out>>(self, next: S) -> S::After<In> {
        next.after(self.canvas)
    }

    /// Supplies the missing arguments of all members.
    ///
    /// ```
    /// # use celery_runtime::{Task, group};
    /// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    ///
    /// let plus_ten = group((0..10).map(|i| ADD.p((i,)))).given((10,));
    /// # let _ = plus_ten;
    /// ```
    #[must_use]
    pub fn given(self, args: In) -> Group<Out>
    where
        In: TaskArgs + Serialize,
    {
        Group::from_canvas(self.canvas.given(args))
    }

    /// Ignores the result of a step before: all members keep only their own arguments.
    #[must_use]
    pub fn immutable(self) -> Group<Out, Ignored> {
        Group::from_canvas(self.canvas.immutable())
    }

    /// Sets options of the call, which override those of all members:
    ///
    /// ```
    /// # use celery_runtime::{Task, group};
    /// # const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    /// let both = group([ADD.s((1, 1)), ADD.s((2, 2))]);
    /// let both = both.with(|all| all.queue("slow").priority(3));
    /// # let _ = both;
    /// ```
    #[must_use]
    pub fn with(self, set: impl FnOnce(Signature<Out, In>) -> Signature<Out, In>) -> Self {
        Self::from_canvas(set(Signature::from_canvas(self.canvas)).canvas)
    }

    /// Sets the id of the group; a new UUID by default.
    #[must_use]
    pub fn group_id(self, id: impl Into<String>) -> Self {
        self.with(|group| group.task_id(id))
    }

    /// Adds an errback, which is sent for each member that fails, with the id of the member as its
    /// first argument.
    #[must_use]
    pub fn link_error<T, I>(self, errback: &Signature<T, I>) -> Self {
        self.with(|group| group.link_error(errback))
    }

    /// Adds a stamp to all members.
    #[must_use]
    pub fn stamp(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with(|group| group.stamp(name, value))
    }

    /// Stamps every part with the stamps that `visitor` returns.
    #[must_use]
    pub fn stamp_with(self, visitor: &mut dyn StampingVisitor) -> Self {
        self.with(|group| group.stamp_with(visitor))
    }
}

impl<T, Out, I: AcceptsResult<T>> Then<T> for Group<Out, I> {
    type After<In> = Group<Out, In>;

    fn after<In>(self, before: Canvas) -> Group<Out, In> {
        Group::from_canvas(before.then_nonempty_group(self.canvas))
    }
}

impl<Out, In> From<Group<Out, In>> for Canvas {
    fn from(group: Group<Out, In>) -> Self {
        group.canvas
    }
}

impl<Out, In> Clone for Group<Out, In> {
    fn clone(&self) -> Self {
        Self::from_canvas(self.canvas.clone())
    }
}

impl<Out, In> fmt::Debug for Group<Out, In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Group").field(&self.canvas).finish()
    }
}
