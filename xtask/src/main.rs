//! The project's commands: `cargo xtask help`.

mod bench;
mod ci;
mod fixtures;
mod fuzz;
mod invariants;
mod judge;
mod peers;
mod setup;
mod shell;
mod tally;
mod test;

use std::env;
use std::process::ExitCode;

const HELP: &str = "\
The project's commands:

  cargo xtask test [FILTER]
      Set up what the tests need (redis-server, a virtual environment with Python Celery under
      target/), run every test of the workspace whose name contains FILTER, and stop what was
      started. Ends with `N passed, N failed`. Needs no preparation on Debian and Ubuntu as root;
      elsewhere it says what is missing. CELERY_TEST_REDIS_SERVER and CELERY_TEST_PYTHON name a
      redis-server and an interpreter with Celery to use instead.
  cargo xtask ci
      The checks besides the tests: format, lints, docs, each feature alone, dependencies.
  cargo xtask fixtures
      Record celery-protocol/fixtures anew from the pinned Python Celery.
  cargo xtask fuzz [--seconds N] [--install]
      Run every fuzz target, N seconds for all together (60). --install installs cargo-fuzz under
      target/ if it is missing; otherwise nothing is run then.
  cargo xtask judge [--broker redis|amqp] [--backend redis|rpc] [--mixed] [--concurrency N]
                    [--only ours|reference] [--times N] [--wait SECONDS] [--fast]
                    [-- PYTEST ARGUMENTS]
      Run Celery's own integration suite with our worker (celery/examples/judge) and with Python's,
      write what came of it to docs/celery-suite.md, and fail where ours fails and Python's does
      not. The suite is taken from the source package of the pinned Celery; what it cannot judge is
      in xtask/python/judge/left_out.tsv. --mixed: a worker of Python's shares the queue.
      --concurrency: tasks at once for each worker; above 1 only the tests of workflows. --only:
      one side, compared with what docs/ say about the other. --times: a test has to pass each
      time. --wait: for a result (20). --fast: ours only, without the tests that take long, in ten
      minutes at most; nothing is written. Nor is it with arguments of pytest.
  cargo xtask bench [--groups | --rabbitmq | --peers [--tasks N]]
      Run the benches and write BENCHMARKS.md; with --groups, one group of 100,000 tasks beside as
      many plain ones; with --rabbitmq, beside a bare loop over lapin and aio-celery; with --peers, N tasks (20000) over Redis through
      Python Celery and through this project in one run.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["test"] => test::run(None),
        ["test", filter] => test::run(Some(filter)),
        ["ci"] => ci::run(),
        ["fixtures"] => fixtures::run(),
        ["fuzz", ref options @ ..] => fuzz::run(options),
        ["judge", ref options @ ..] => judge::run(options),
        ["bench", ref options @ ..] => bench::run(options),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!(
            "no such command: {}\n\n{HELP}",
            arguments.join(" ")
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // A command that has said all there is to say leaves it empty.
            if !message.is_empty() {
                eprintln!("{}", message.trim_end());
            }
            ExitCode::FAILURE
        }
    }
}
