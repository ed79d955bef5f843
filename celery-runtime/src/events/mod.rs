//! Monitoring: [`Events`] receives the events of workers and clients,
//! [`ClusterState`] keeps the state of workers and tasks that follows from them.

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
