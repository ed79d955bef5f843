//! The project's commands; `cargo xtask help` lists them.
//!
//! This program depends on no other crate of the workspace except `test-servers`, so that a command
//! still runs when one of them does not compile.

mod bench;
mod checks;
mod ci;
mod comparison;
mod fixtures;
mod fuzz;
mod interop;
mod rabbitmq_4;
mod setup;
mod shell;
mod stories;
mod test;
mod test_summary;

use std::env;
use std::process::ExitCode;

const HELP: &str = "\
The project's commands:

  cargo xtask test [FILTER]
      Install or find what the tests need (redis-server, rabbitmq-server, openssl, a virtual
      environment with Python Celery below target/), run every test of the workspace whose name
      contains FILTER, and stop all servers. Ends with `N passed, N failed`. Needs no preparation
      on Debian and Ubuntu as root; elsewhere it lists the missing programs.
      CELERY_TEST_REDIS_SERVER, CELERY_TEST_RABBITMQ_SERVER and CELERY_TEST_PYTHON name a
      redis-server, a rabbitmq-server and a Python interpreter with Celery to use instead.
  cargo xtask test --rabbitmq-4 [FILTER]
      Run the tests of celery-broker-amqp that need a server against RabbitMQ 4, which is installed
      below target/ from the packages of Debian 13 (debootstrap, as root, 400 MB, a minute) by the
      first run. Where that is impossible it prints `skipped: RabbitMQ 4: REASON` and succeeds.
  cargo xtask ci [FILTER]
      Run the checks besides the tests whose name contains FILTER: format, lints, docs, each
      feature alone, dependencies, layers, environment, sizes, words. Lists skipped checks.
  cargo xtask fixtures
      Record celery-protocol/fixtures again from the pinned Python Celery.
  cargo xtask fuzz [--seconds N] [--install]
      Run every fuzz target, N seconds for all together (60). Without cargo-fuzz nothing runs;
      --install installs it below target/.
  cargo xtask stories [COUNT]
      Run random stories of a worker's deliveries, with faults of broker and result backend at any
      point (60000; the tests run 2000). STORY_SEED=N cargo test -p celery-runtime
      every_story_ends_well -- --nocapture prints one.
  cargo xtask interop [--broker redis|amqp] [--backend redis|rpc] [--mixed] [--concurrency N]
                      [--only ours|reference] [--times N] [--wait SECONDS] [--fast]
                      [-- PYTEST ARGUMENTS]                                     (alias: judge)
      Run Celery's own integration suite against our worker (celery/examples/interop) and against
      Python's, write the results to docs/celery-suite.md, and fail if our worker does not pass a
      test that Python's passes. The suite comes from the source package of the pinned Celery;
      xtask/python/interop/exclusions.tsv lists the tests that do not apply.
      --mixed: a Python worker consumes the same queue. --concurrency: tasks per worker at the same
      time; above 1 only the workflow tests run. --only: run one implementation and compare with
      the recorded results of the other. --times: a test must pass each time. --wait: timeout for a
      result (20). --fast: our worker only, without slow tests, at most ten minutes. Results are
      recorded by complete runs only: not with --fast and not with arguments of pytest.
  cargo xtask bench [--groups | --rabbitmq | --comparison [--tasks N]]
      Run the benchmarks and write BENCHMARKS.md. --groups: a group of 100,000 tasks compared with
      the same number of plain tasks. --rabbitmq: compared with a plain lapin loop and aio-celery.
      --comparison: N tasks (20000) over Redis, Python Celery and this project in one run.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["test"] => test::run(None),
        ["test", "--rabbitmq-4"] => test::run_on_rabbitmq_4(None),
        ["test", "--rabbitmq-4", filter] => test::run_on_rabbitmq_4(Some(filter)),
        ["test", filter] => test::run(Some(filter)),
        ["ci"] => ci::run(""),
        ["ci", filter] => ci::run(filter),
        ["fixtures"] => fixtures::run(),
        ["fuzz", ref options @ ..] => fuzz::run(options),
        ["interop" | "judge", ref options @ ..] => interop::run(options),
        ["stories", ref options @ ..] => stories::run(options),
        ["bench", ref options @ ..] => bench::run(options),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!(
            "unknown command: {}\n\n{HELP}",
            arguments.join(" ")
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Empty if the command has printed the problems already.
            if !message.is_empty() {
                eprintln!("{}", message.trim_end());
            }
            ExitCode::FAILURE
        }
    }
}
