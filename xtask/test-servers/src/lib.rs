//! Private servers and Python programs for tests and benches.
//!
//! Each server is a child process with its own folder below `target/servers/`, a free port on the
//! loopback interface, and a guard that kills it with all of its children when the value is
//! dropped, and also when the test process dies without dropping it.
//!
//! A missing program is a panic that says how to install it: a test that needs a server never
//! passes without one.
//!
//! Read first: [`RedisServer`] and [`Python`].
//!
//! This crate depends on no other crate of the workspace, so that `cargo xtask` still runs when
//! one of them does not compile.

pub mod paths;

mod ports;
mod process;
mod process_group;
mod proxy;
mod python;
mod rabbit;
mod redis;
mod resp;
mod settings;
mod tls;

pub use process::{Leak, kill_leaks};
pub use process_group::{ProcessGroup, poll_until};
pub use proxy::{Fault, InjectedFault, Proxy};
pub use python::{Python, PythonWorker, PythonWorkerBuilder};
pub use rabbit::{RabbitServer, RabbitServerBuilder};
pub use redis::RedisServer;
pub use resp::Reply;
pub use settings::RedisServerBuilder;

/// Environment variable that names the `redis-server` to start; default: the one on `PATH`.
pub const REDIS_SERVER: &str = "CELERY_TEST_REDIS_SERVER";

/// Environment variable that names the `rabbitmq-server` to start; default: the installed one.
pub const RABBITMQ_SERVER: &str = "CELERY_TEST_RABBITMQ_SERVER";

/// Environment variable that names a Python interpreter with Celery.
pub const PYTHON: &str = "CELERY_TEST_PYTHON";
