//! The example programs, on every broker.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use test_servers::paths;

use crate::support::{
    Setup, WorkerProcess, blocking, example, for_each_broker, start_python, within,
};

for_each_broker! {
    worker_example_serves_both_clients: redis, rabbitmq, rpc;
    canvas_example_prints_expected_results: redis, rabbitmq;
}

async fn worker_example_serves_both_clients(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[]).await;
    let python = setup.python("import client; client.main()").await;
    let expected = paths::python_app().join("client.expected");
    assert_eq!(python, std::fs::read_to_string(expected).unwrap());

    assert_eq!(output("client", &urls(&setup)).await, CLIENT);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}

async fn canvas_example_prints_expected_results(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[]).await;
    assert_eq!(output("canvas", &urls(&setup)).await, CANVAS);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));

    let python = start_python(setup.python_worker()).await;
    assert_eq!(output("canvas", &urls(&setup)).await, CANVAS);
    python.terminate();
}

#[tokio::test]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn canvas_example_runs_in_memory() {
    assert_eq!(output("canvas", &[]).await, CANVAS);
}

#[tokio::test]
#[ignore = "needs the example programs; run cargo xtask test"]
async fn worker_examples_exit_with_the_code_of_their_error() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let unreachable = format!("redis://{}", unused.local_addr().unwrap());
    drop(unused);
    for program in ["worker", "chords", "isolated", "interop"] {
        let wrong_setting = [("CELERY_WORKER_CONCURRENCY", "many")];
        let (code, errors) = failure(program, &unreachable, &wrong_setting).await;
        assert_eq!(code, Some(2), "{program}: {errors}");
        assert!(errors.contains("worker_concurrency"), "{program}: {errors}");

        let no_retries = [("CELERY_BROKER_CONNECTION_MAX_RETRIES", "0")];
        let (code, errors) = failure(program, &unreachable, &no_retries).await;
        assert_eq!(code, Some(1), "{program}: {errors}");
        assert!(errors.contains("refused"), "{program}: {errors}");
    }
}

/// Runs an example that fails, and returns its exit code and its standard error.
async fn failure(name: &str, url: &str, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(example(name));
    command
        .env("CELERY_BROKER_URL", url)
        .env("CELERY_RESULT_BACKEND", url)
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    let output = blocking(move || command.output().unwrap());
    let output = within("the example fails", output).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), errors)
}

fn urls(setup: &Setup) -> [&str; 2] {
    [setup.broker_url(), setup.result_backend_url()]
}

/// Runs an example and returns its standard output.
async fn output(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(example(name));
    command.args(arguments);
    for name in ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"] {
        command.env_remove(name);
    }
    let output = blocking(move || command.output().unwrap()).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The output of the example `client`.
const CLIENT: &str = "\
add(2, 3) = 5
mul(6, 7), a second later = 42
sub(n, 1), sent in one batch = 0
sub(n, 1), sent in one batch = 1
sub(n, 1), sent in one batch = 2
divide(1, 0) raised ZeroDivisionError('division by zero')
progress(3) = 3
";

/// The output of the example `canvas`.
const CANVAS: &str = "\
add(8, 2) = 10
add(i, i) = 0, 2, 4, 6, 8, 10, 12, 14, 16, 18
add(10, i) = 10, 11, 12, 13, 14, 15, 16, 17, 18, 19
(4 + 4) * 8 = 64
the sum of add(i, i) = 90
";
