//! Tests that look at the crate from outside.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

mod codec;
mod fixtures;
mod hostile;
mod json_oracle;
mod python;
mod results;
mod tagged;
mod time;
mod typed;
mod values;
