//! `cargo xtask fuzz`: every fuzz target for a bounded time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use test_servers::paths::{self, on_path};

use crate::shell::{Outcome, cargo, run as run_command, say, stream};

/// Seconds for all targets together when nothing is said.
const SECONDS: u64 = 60;

/// Seconds beyond its own that a target may take to start and to end.
const GRACE: u64 = 120;

/// Runs all targets, also after one has failed.
pub(crate) fn run(options: &[&str]) -> Outcome {
    let options = Options::read(options)?;
    let folder = paths::workspace().join("celery-protocol/fuzz");
    let targets = targets(&folder.join("fuzz_targets"))?;
    let Some(program) = cargo_fuzz(options.install)? else {
        println!(
            "skipped: fuzzing, because cargo-fuzz is not installed: `cargo xtask fuzz --install` \
             or `cargo install cargo-fuzz --locked`"
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
        // The instrumentation asks for a nightly compiler; this lets a stable one do it.
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
        let limit = Duration::from_secs(seconds + GRACE);
        let status = stream(&mut command, limit, |line| println!("{line}"))?;
        if !status.is_some_and(|status| status.success()) {
            failed.push(target.as_str());
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "fuzz targets failed: {}; the inputs are in {}",
            failed.join(", "),
            folder.join("artifacts").display()
        )),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    seconds: u64,
    install: bool,
}

impl Options {
    fn read(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            seconds: SECONDS,
            install: false,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--install" => options.install = true,
                "--seconds" => {
                    let number = words.next().and_then(|number| number.parse().ok());
                    options.seconds = number.ok_or("--seconds takes a number of seconds")?;
                }
                _ => return Err(format!("cargo xtask fuzz has no option {word}")),
            }
        }
        Ok(options)
    }
}

/// The names of the targets: the files of their folder.
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
    match names.is_empty() {
        true => Err(format!("there is no fuzz target in {}", folder.display())),
        false => Ok(names),
    }
}

/// The program: on `PATH`, or installed by us.
fn cargo_fuzz(install: bool) -> Result<Option<PathBuf>, String> {
    let tools = paths::target().join("tools");
    let ours = tools.join("bin/cargo-fuzz");
    if let Some(path) = on_path("cargo-fuzz") {
        return Ok(Some(path));
    }
    if !ours.exists() && install {
        say(&format!("installing cargo-fuzz in {}", tools.display()));
        run_command(cargo(&["install", "cargo-fuzz", "--locked", "--root"]).arg(&tools))?;
    }
    Ok(ours.exists().then_some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let read = |words: &[&str]| Options::read(words);
        let options = |seconds, install| Ok(Options { seconds, install });
        assert_eq!(read(&[]), options(60, false));
        assert_eq!(read(&["--seconds", "5", "--install"]), options(5, true));
        assert!(read(&["--seconds"]).is_err());
        assert!(read(&["--second", "5"]).is_err());
    }
}
