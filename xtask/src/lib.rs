//! Project commands, and the servers that tests and benches talk to.
//!
//! The program `cargo xtask` is the project's one door: tests, checks, fixtures, fuzzing,
//! benchmarks (`cargo xtask help`). The library half is a dev-dependency of the other crates: it
//! starts private servers and Python programs, and stops them whatever happens to the test.
//!
//! Read first: [`servers::RedisServer`] and [`servers::Python`].
//!
//! This crate depends on none of the workspace's others, so that a command still runs when one of
//! them does not compile.

pub mod group;
pub mod paths;
pub mod servers;
