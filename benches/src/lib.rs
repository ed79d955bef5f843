//! What the benches measure, so that time and allocations are taken of the same operations.
//!
//! Start at [`codec::all`]: it shows every operation of the wire protocol to a [`Measure`].
//! `benches/codec.rs` takes their time, `src/bin/allocations.rs` counts their allocations.

pub mod codec;
pub mod noop;
pub mod sides;

/// Takes the measure of operations.
pub trait Measure {
    /// Measures one operation, which may be run any number of times.
    fn measure<T>(&mut self, name: Name, operation: impl FnMut() -> T);
}

/// Names an operation: its group, and its place in the group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "nobody outside uses it")]
pub struct Name {
    /// The question that it helps to answer.
    pub group: &'static str,
    /// What tells it from others of the group.
    pub case: String,
}

impl Name {
    /// An operation of a group.
    pub fn new(group: &'static str, case: impl Into<String>) -> Self {
        Self {
            group,
            case: case.into(),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.group, self.case)
    }
}
