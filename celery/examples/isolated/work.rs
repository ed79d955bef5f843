//! Tasks of all kinds of bad manners, and some of good ones.

#![allow(
    clippy::needless_pass_by_value,
    reason = "the worker gives a task what the task may keep"
)]

use std::convert::Infallible;
use std::num::ParseIntError;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use celery::{AutoRetry, Context, Task, TaskError, Tasks};
use tokio::runtime::Handle;

pub(crate) const ADD: Task<(i64, i64), i64> = Task::new("isolated.add").params(&["x", "y"]);
/// The process that it runs in.
pub(crate) const PID: Task<(), u32> = Task::new("isolated.pid");
/// An async function, in a child too.
pub(crate) const ASYNC_PID: Task<(), u32> = Task::new("isolated.async_pid");
/// A task in the worker's own process.
pub(crate) const WORKER_PID: Task<(), u32> = Task::new("isolated.worker_pid");
/// Keeps the worker's runtime from everything else for so many milliseconds.
pub(crate) const BLOCK: Task<(u64,), ()> = Task::new("isolated.block").params(&["milliseconds"]);
/// Uses the application's state.
pub(crate) const GREET: Task<(String,), String> = Task::new("isolated.greet").params(&["name"]);
pub(crate) const PANIC: Task<(String,), ()> = Task::new("isolated.panic").params(&["message"]);
pub(crate) const ABORT: Task<(), ()> = Task::new("isolated.abort");
pub(crate) const EXIT: Task<(i32,), ()> = Task::new("isolated.exit").params(&["code"]);
/// Ends its own process by a signal, by its name without `SIG`.
pub(crate) const CRASH: Task<(String,), ()> = Task::new("isolated.crash").params(&["signal"]);
/// The same, late, unless it was delivered before.
pub(crate) const CRASH_ONCE: Task<(String,), String> = Task::new("isolated.crash_once")
    .params(&["signal"])
    .acks_late()
    .reject_on_worker_lost();
/// The same, late, each time. It leaves a file in the folder each time.
pub(crate) const CRASH_ALWAYS: Task<(String,), ()> = Task::new("isolated.crash_always")
    .params(&["folder"])
    .acks_late()
    .reject_on_worker_lost();
/// Runs for ever and listens to nobody. It leaves its process id in the folder.
pub(crate) const HANG: Task<(String,), ()> = Task::new("isolated.hang").params(&["folder"]);
/// Runs until its soft limit.
pub(crate) const OBEY: Task<(), String> = Task::new("isolated.obey");
/// The same as an async function.
pub(crate) const ASYNC_OBEY: Task<(), String> = Task::new("isolated.async_obey");
/// Leaves its process id in the folder and runs until the worker stops.
pub(crate) const HEED: Task<(String,), String> = Task::new("isolated.heed").params(&["folder"]);
/// Leaves its process id in the folder and waits for a file `go` in it.
pub(crate) const HOLD: Task<(String,), u32> = Task::new("isolated.hold").params(&["folder"]);
/// Reports that it waits, and then does as [`HOLD`].
pub(crate) const REPORT: Task<(String,), u32> = Task::new("isolated.report").params(&["folder"]);
/// Reports a state that only the worker may set; answers what it is told.
pub(crate) const PRETEND: Task<(), String> = Task::new("isolated.pretend");
pub(crate) const AGAIN: Task<(u32,), u32> = Task::new("isolated.again").params(&["times"]);
/// Retried by itself for what is no number.
pub(crate) const PARSE: Task<(String,), i64> = Task::new("isolated.parse")
    .params(&["text"])
    .max_retries(2)
    .retry_delay(Duration::ZERO)
    .autoretry(AutoRetry::on::<ParseIntError>());
pub(crate) const ECHO: Task<(String,), String> = Task::new("isolated.echo").params(&["text"]);
/// Takes so many MiB of memory, and keeps them.
pub(crate) const EAT: Task<(usize,), u32> = Task::new("isolated.eat").params(&["mib"]);
/// Prints and reads as if it were alone.
pub(crate) const CHAT: Task<(), String> = Task::new("isolated.chat");
/// How its message came.
pub(crate) const ORIGIN: Task<(), (String, u32, String)> = Task::new("isolated.origin");

/// The application's state.
pub(crate) struct Phrases {
    greeting: &'static str,
}

pub(crate) fn tasks() -> Tasks {
    Tasks::new()
        .with(WORKER_PID, async || Ok::<_, Infallible>(std::process::id()))
        .with(BLOCK, async |milliseconds| {
            thread::sleep(Duration::from_millis(milliseconds));
            Ok::<_, Infallible>(())
        })
        .with_isolated_async(ASYNC_PID, async || Ok::<_, Infallible>(std::process::id()))
        .with_isolated_async(ASYNC_OBEY, async_obey)
        .with_isolated(ADD, |x, y| Ok::<_, Infallible>(x + y))
        .with_isolated(PID, || Ok::<_, Infallible>(std::process::id()))
        .with_isolated(GREET, greet)
        .with_isolated(PANIC, panic)
        .with_isolated(ABORT, || -> Result<(), Infallible> {
            std::process::abort()
        })
        .with_isolated(EXIT, |code| -> Result<(), Infallible> {
            std::process::exit(code)
        })
        .with_isolated(CRASH, |signal: String| crash(&signal))
        .with_isolated(CRASH_ONCE, crash_once)
        .with_isolated(CRASH_ALWAYS, crash_always)
        .with_isolated(HANG, hang)
        .with_isolated(OBEY, obey)
        .with_isolated(HEED, heed)
        .with_isolated(HOLD, hold)
        .with_isolated(REPORT, report)
        .with_isolated(PRETEND, pretend)
        .with_isolated(AGAIN, again)
        .with_isolated(PARSE, |text: String| text.parse::<i64>())
        .with_isolated(ECHO, Ok::<String, Infallible>)
        .with_isolated(EAT, eat)
        .with_isolated(CHAT, chat)
        .with_isolated(ORIGIN, origin)
        .with_state(Phrases { greeting: "Hello" })
}

fn greet(ctx: Context<Phrases>, name: String) -> Result<String, Infallible> {
    Ok(format!("{}, {name}!", ctx.state().greeting))
}

fn panic(message: String) -> Result<(), Infallible> {
    panic!("{message}")
}

fn crash(signal: &str) -> Result<(), TaskError> {
    let kill = format!("kill -s {signal} {}", std::process::id());
    // More than once: the first SIGSEGV that nothing in the program explains
    // only takes Rust's own handler away.
    loop {
        Command::new("sh").args(["-c", &kill]).status()?;
    }
}

fn crash_once(ctx: Context<Phrases>, signal: String) -> Result<String, TaskError> {
    if !ctx.is_redelivered() {
        crash(&signal)?;
    }
    Ok("survived".to_owned())
}

fn crash_always(folder: String) -> Result<(), TaskError> {
    leave_pid(&folder)?;
    crash("KILL")
}

fn hang(folder: String) -> Result<(), TaskError> {
    leave_pid(&folder)?;
    loop {
        thread::park();
    }
}

fn obey(ctx: Context<Phrases>) -> Result<String, Infallible> {
    while !ctx.is_soft_time_limit_reached() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok("obeyed".to_owned())
}

async fn async_obey(ctx: Context<Phrases>) -> Result<String, Infallible> {
    ctx.soft_time_limit().await;
    Ok("obeyed".to_owned())
}

fn heed(ctx: Context<Phrases>, folder: String) -> Result<String, TaskError> {
    leave_pid(&folder)?;
    while !ctx.is_stopping() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok("heeded".to_owned())
}

fn hold(folder: String) -> Result<u32, TaskError> {
    leave_pid(&folder)?;
    while !Path::new(&folder).join("go").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(std::process::id())
}

fn report(ctx: Context<Phrases>, folder: String) -> Result<u32, TaskError> {
    Handle::current().block_on(ctx.update_state("WAITING", "for a file"))?;
    hold(folder)
}

fn pretend(ctx: Context<Phrases>) -> Result<String, Infallible> {
    let told = Handle::current().block_on(ctx.update_state("SUCCESS", 1));
    Ok(told.map_or_else(|error| error.to_string(), |()| "stored".to_owned()))
}

fn again(ctx: Context<Phrases>, times: u32) -> Result<u32, TaskError> {
    if ctx.retries() < times {
        let because = TaskError::exception("ValueError", "not yet");
        return Err(TaskError::retry().after(Duration::ZERO).because(because));
    }
    Ok(ctx.retries())
}

fn eat(mib: usize) -> Result<u32, Infallible> {
    std::mem::forget(vec![1_u8; mib << 20]);
    Ok(std::process::id())
}

fn chat() -> Result<String, TaskError> {
    println!("a child prints");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line)
}

fn origin(ctx: Context<Phrases>) -> Result<(String, u32, String), Infallible> {
    let queue = ctx.delivery_info().routing_key.clone();
    let header = ctx.header("color");
    let header = header.and_then(|color| color.as_str().map(str::to_owned));
    Ok((queue, ctx.retries(), header.unwrap_or_default()))
}

/// Each run leaves a file of its own.
fn leave_pid(folder: &str) -> Result<(), TaskError> {
    let pid = std::process::id();
    // Renamed, so that whoever sees it sees all of it.
    let (new, path) = (format!("{folder}/.{pid}"), format!("{folder}/{pid}"));
    std::fs::write(&new, "")?;
    Ok(std::fs::rename(new, path)?)
}
