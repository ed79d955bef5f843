//! Watching workers and tasks: [`Events`] receives what they tell,
//! [`ClusterState`] keeps the sum of it.

mod lru_table;
mod rates;
mod state;
mod stream;
mod task;
mod worker;

pub use rates::EventRates;
pub use state::ClusterState;
pub use stream::{EventStream, Events};
pub use task::TaskRecord;
pub use worker::WorkerRecord;
