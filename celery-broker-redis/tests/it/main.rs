//! The broker against real servers.

mod conformance;
mod connections;
mod consume;
mod fanout;
mod faults;
mod leases;
mod publish;
mod refused;
mod restore;
mod settle;
mod slow_link;
mod stop;
mod support;
