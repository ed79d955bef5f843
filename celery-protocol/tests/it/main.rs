//! Tests that look at the crate from outside.

mod codec;
mod fixtures;
mod hostile;
mod json_oracle;
mod python;
mod tagged;
mod time;
mod typed;
mod values;
