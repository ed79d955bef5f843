//! `cargo xtask stories`: random stories of deliveries with faults.

use crate::shell::{Outcome, cargo, run as run_command, say};

/// The number of stories without an argument.
const DEFAULT_COUNT: u64 = 60_000;

/// Runs stories of a worker's deliveries; see
/// `celery-runtime/src/worker/delivery/state/tests/stories`.
pub(crate) fn run(options: &[&str]) -> Outcome {
    let count: u64 = match options {
        [] => DEFAULT_COUNT,
        [count] => count
            .parse()
            .map_err(|_| format!("cargo xtask stories: {count} is no number of stories"))?,
        _ => return Err("cargo xtask stories takes one number".to_owned()),
    };
    say(&format!("{count} stories"));
    let arguments = [
        "test",
        "--package",
        "celery-runtime",
        "--lib",
        "every_story_ends_well",
    ];
    run_command(cargo(&arguments).env("STORY_COUNT", count.to_string()))
}
