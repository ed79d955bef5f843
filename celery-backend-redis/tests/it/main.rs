//! The result backend against real servers.

mod backend;
mod chords;
mod conformance;
mod faults;
mod outages;
mod store;
mod support;
mod wait;
mod wire;
