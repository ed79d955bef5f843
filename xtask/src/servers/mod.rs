//! Private servers and Python programs for tests and benches.
//!
//! Each is a child process with its own folder below `target/servers/`, a free port on the
//! loopback interface, and a guard that kills it and all of its own children when the value is
//! dropped, and also when the test process dies without dropping anything.
//!
//! What is missing on the machine is a panic that says what to do: a test that needs a server
//! never passes without one.

mod ports;
mod process;
mod proxy;
mod python;
mod rabbit;
mod redis;
mod resp;
mod settings;
mod tls;

pub use process::{Leak, kill_leaks};
pub use proxy::Proxy;
pub use python::{Python, PythonWorker, PythonWorkerBuilder};
pub use rabbit::{RabbitServer, RabbitServerBuilder};
pub use redis::RedisServer;
pub use resp::Reply;
pub use settings::RedisServerBuilder;

/// Environment variable: the `redis-server` program to start; without it, the one on `PATH`.
pub const REDIS_SERVER: &str = "CELERY_TEST_REDIS_SERVER";

/// Environment variable: the `rabbitmq-server` program to start; without it, the installed one.
pub const RABBITMQ_SERVER: &str = "CELERY_TEST_RABBITMQ_SERVER";

/// Environment variable: the Python interpreter that has Celery installed.
pub const PYTHON: &str = "CELERY_TEST_PYTHON";
