//! `cargo xtask fixtures`: records messages of the pinned Python Celery.

use std::process::Command;

use test_servers::{RedisServer, paths};

use crate::setup::Programs;
use crate::shell::{Outcome, run as run_command, say};

/// Runs the recorder against a private Redis server.
pub(crate) fn run() -> Outcome {
    let programs = Programs::find_or_install()?;
    let redis = RedisServer::builder()
        .program(&programs.redis_server)
        .start();
    let fixtures = paths::workspace().join("celery-protocol/fixtures");
    say(&format!("recording into {}", fixtures.display()));
    let mut recorder = Command::new(&programs.python);
    recorder
        .arg(paths::workspace().join("xtask/python/record.py"))
        .args(["--redis", &redis.database_url(0)])
        .arg("--out")
        .arg(&fixtures)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run_command(&mut recorder)
}
