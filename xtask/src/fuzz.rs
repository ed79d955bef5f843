//! `cargo xtask fuzz`: runs every fuzz target for a limited time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use test_servers::paths::{self, on_path};

use crate::shell::{Outcome, cargo, run as run_command, say, stream};

/// The default number of seconds for all targets together.
const DEFAULT_SECONDS: u64 = 60;

/// The number of additional seconds for the start and exit of a target.
const START_AND_EXIT_SECONDS: u64 = 120;

/// Runs all targets, even after a failure.
pub(crate) fn run(options: &[&str]) -> Outcome {
    let options = Options::parse(options)?;
    let folder = paths::workspace().join("celery-protocol/fuzz");
    let targets = targets(&folder.join("fuzz_targets"))?;
    let Some(program) = cargo_fuzz(options.install)? else {
        println!(
            "skipped: cargo-fuzz is not installed: `cargo xtask fuzz --install` or `cargo install \
             cargo-fuzz --locked`"
        );
        return Ok(());
    };

    say(&format!("building {} fuzz targets", targets.len()));
    let fuzz = |verb: &str| {
        let mut command = Command::new(&program);
        command.args(["fuzz", verb, "--fuzz-dir"]).arg(&folder);
        command
            .arg("--target-dir")
            .arg(paths::target().join("fuzz"));
        // Allows a stable compiler to use the unstable instrumentation options.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.current_dir(paths::workspace());
        command
    };
    run_command(&mut fuzz("build"))?;

    let seconds = (options.seconds / targets.len() as u64).max(1);
    let mut failed = Vec::new();
    for target in &targets {
        say(&format!("fuzzing {target} for {seconds} s"));
        let mut command = fuzz("run");
        command.arg(target).arg("--");
        command.arg(format!("-max_total_time={seconds}"));
        let limit = Duration::from_secs(seconds + START_AND_EXIT_SECONDS);
        let status = stream(&mut command, limit, |line| println!("{line}"))?;
        if !status.is_some_and(|status| status.success()) {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "fuzz targets failed: {}; the inputs are in {}",
        failed.join(", "),
        folder.join("artifacts").display()
    ))
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    seconds: u64,
    install: bool,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            seconds: DEFAULT_SECONDS,
            install: false,
        };
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            match argument {
                "--install" => options.install = true,
                "--seconds" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    options.seconds = number.ok_or("--seconds takes a number of seconds")?;
                }
                _ => return Err(format!("cargo xtask fuzz has no option {argument}")),
            }
        }
        Ok(options)
    }
}

/// Returns the names of the targets: the files of their folder.
fn targets(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(format!("no fuzz target in {}", folder.display()));
    }
    Ok(names)
}

/// Returns cargo-fuzz: on `PATH`, or installed below `target/`.
fn cargo_fuzz(install: bool) -> Result<Option<PathBuf>, String> {
    let tools = paths::target().join("tools");
    let installed = tools.join("bin/cargo-fuzz");
    if let Some(path) = on_path("cargo-fuzz") {
        return Ok(Some(path));
    }
    if !installed.exists() && install {
        say(&format!("installing cargo-fuzz in {}", tools.display()));
        run_command(cargo(&["install", "cargo-fuzz", "--locked", "--root"]).arg(&tools))?;
    }
    Ok(installed.exists().then_some(installed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_options_are_parsed_and_invalid_ones_rejected() {
        let parse = |arguments: &[&str]| Options::parse(arguments);
        let options = |seconds, install| Ok(Options { seconds, install });
        assert_eq!(parse(&[]), options(60, false));
        assert_eq!(parse(&["--seconds", "5", "--install"]), options(5, true));
        assert!(parse(&["--seconds"]).is_err());
        assert!(parse(&["--second", "5"]).is_err());
    }
}
