//! Tests of the public API.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

mod codec;
mod fixtures;
mod json;
mod json_oracle;
#[cfg(feature = "msgpack")]
mod msgpack;
mod python;
mod results;
mod tagged;
mod time;
mod typed;
mod untrusted_input;
mod values;
#[cfg(feature = "yaml")]
mod yaml;
