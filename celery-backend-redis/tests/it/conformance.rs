//! The conformance suites of the runtime.

use celery_runtime::{backend_conformance, store_conformance};

use crate::support::Setup;

backend_conformance!(
    ignore = "needs redis-server; run cargo xtask test",
    Setup::start()
);
store_conformance!(
    ignore = "needs redis-server; run cargo xtask test",
    Setup::start()
);
