//! The example programs: the same ones on every broker, by their URLs alone.

use std::process::Command;

use xtask::paths;

use crate::support::{Setup, WorkerProcess, blocking, example, stories};

stories! {
    the_worker_and_both_clients: redis, rabbitmq, rpc;
}

async fn the_worker_and_both_clients(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[]).await;
    let python = setup.python("import client; client.main()").await;
    let expected = paths::python_app().join("client.expected");
    assert_eq!(python, std::fs::read_to_string(expected).unwrap());

    let mut client = Command::new(example("client"));
    client.args([setup.broker_url(), setup.result_backend_url()]);
    let output = blocking(move || client.output().unwrap()).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), CLIENT);
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}

/// What the client prints.
const CLIENT: &str = "\
add(2, 3) = 5
mul(6, 7), a second later = 42
sub(n, 1), sent in one batch = 0
sub(n, 1), sent in one batch = 1
sub(n, 1), sent in one batch = 2
divide(1, 0) raised ZeroDivisionError('division by zero')
progress(3) = 3
";
