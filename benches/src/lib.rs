//! The operations that the benchmarks measure, shared so that time and allocations are measured of
//! the same operations.
//!
//! Read first: [`codec::all`], which passes every operation of the wire protocol to a [`Measure`].
//! `benches/codec.rs` measures the time, `src/bin/allocations.rs` counts the allocations.

pub mod codec;
pub mod noop;
pub mod rates;

/// Measures operations.
pub trait Measure {
    /// Measures one operation, which may run any number of times.
    fn measure<T>(&mut self, name: OperationName, operation: impl FnMut() -> T);
}

/// The name of an operation: group and case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "only the benchmarks use it")]
pub struct OperationName {
    /// The group, which answers one question.
    pub group: &'static str,
    /// The case within the group.
    pub case: String,
}

impl OperationName {
    /// Creates the name of a case of a group.
    pub fn new(group: &'static str, case: impl Into<String>) -> Self {
        Self {
            group,
            case: case.into(),
        }
    }
}

impl std::fmt::Display for OperationName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.group, self.case)
    }
}
