//! Tasks that crash, block, exceed limits or use the terminal, and well-behaved
//! ones.

#![allow(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::convert::Infallible;
use std::num::ParseIntError;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use celery::{AutoRetry, Context, Task, TaskError, Tasks};
use tokio::runtime::Handle;

pub(crate) const ADD: Task<(i64, i64), i64> = Task::new("isolated.add").params(&["x", "y"]);
/// Returns the id of its process.
pub(crate) const PID: Task<(), u32> = Task::new("isolated.pid");
/// [`PID`] as an async function, in a child, too.
pub(crate) const ASYNC_PID: Task<(), u32> = Task::new("isolated.async_pid");
/// [`PID`] in the worker's own process.
pub(crate) const WORKER_PID: Task<(), u32> = Task::new("isolated.worker_pid");
/// Blocks the worker's runtime for so many milliseconds.
pub(crate) const BLOCK: Task<(u64,), ()> = Task::new("isolated.block").params(&["milliseconds"]);
/// Reads the application's state.
pub(crate) const GREET: Task<(String,), String> = Task::new("isolated.greet").params(&["name"]);
pub(crate) const PANIC: Task<(String,), ()> = Task::new("isolated.panic").params(&["message"]);
pub(crate) const ABORT: Task<(), ()> = Task::new("isolated.abort");
pub(crate) const EXIT: Task<(i32,), ()> = Task::new("isolated.exit").params(&["code"]);
/// Sends its own process a signal, by its name without `SIG`.
pub(crate) const CRASH: Task<(String,), ()> = Task::new("isolated.crash").params(&["signal"]);
/// [`CRASH`] with late acknowledgement, unless the message is redelivered.
pub(crate) const CRASH_ONCE: Task<(String,), String> = Task::new("isolated.crash_once")
    .params(&["signal"])
    .acks_late()
    .reject_on_worker_lost();
/// Kills its process on every delivery, with late acknowledgement, and writes
/// the process id to the folder each time.
pub(crate) const CRASH_ALWAYS: Task<(String,), ()> = Task::new("isolated.crash_always")
    .params(&["folder"])
    .acks_late()
    .reject_on_worker_lost();
/// Never returns, and ignores limits and shutdown. Writes its process id to the
/// folder.
pub(crate) const HANG: Task<(String,), ()> = Task::new("isolated.hang").params(&["folder"]);
/// Runs until its soft time limit.
pub(crate) const OBEY_SOFT_LIMIT: Task<(), String> = Task::new("isolated.obey_soft_limit");
/// [`OBEY_SOFT_LIMIT`] as an async function.
pub(crate) const ASYNC_OBEY_SOFT_LIMIT: Task<(), String> =
    Task::new("isolated.async_obey_soft_limit");
/// Writes its process id to the folder and runs until the worker shuts down.
pub(crate) const OBEY_SHUTDOWN: Task<(String,), String> =
    Task::new("isolated.obey_shutdown").params(&["folder"]);
/// Writes its process id to the folder and waits for a file `go` in it.
pub(crate) const WAIT_FOR_FILE: Task<(String,), u32> =
    Task::new("isolated.wait_for_file").params(&["folder"]);
/// Sets the state WAITING, then runs as [`WAIT_FOR_FILE`].
pub(crate) const REPORT_AND_WAIT: Task<(String,), u32> =
    Task::new("isolated.report_and_wait").params(&["folder"]);
/// Sets a state that only the worker may set, and returns the error.
pub(crate) const SET_FINAL_STATE: Task<(), String> = Task::new("isolated.set_final_state");
pub(crate) const RETRY: Task<(u32,), u32> = Task::new("isolated.retry").params(&["times"]);
/// Retried automatically when the text is not a number.
pub(crate) const PARSE: Task<(String,), i64> = Task::new("isolated.parse")
    .params(&["text"])
    .max_retries(2)
    .retry_delay(Duration::ZERO)
    .autoretry(AutoRetry::on::<ParseIntError>());
pub(crate) const ECHO: Task<(String,), String> = Task::new("isolated.echo").params(&["text"]);
/// Leaks so many MiB of memory.
pub(crate) const ALLOCATE: Task<(usize,), u32> = Task::new("isolated.allocate").params(&["mib"]);
/// Prints to standard output and reads standard input.
pub(crate) const USE_STDIO: Task<(), String> = Task::new("isolated.use_stdio");
/// Returns the routing key, the number of retries and a header of its message.
pub(crate) const DELIVERY: Task<(), (String, u32, String)> = Task::new("isolated.delivery");

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
        .with_isolated_async(ASYNC_OBEY_SOFT_LIMIT, async_obey_soft_limit)
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
        .with_isolated(OBEY_SOFT_LIMIT, obey_soft_limit)
        .with_isolated(OBEY_SHUTDOWN, obey_shutdown)
        .with_isolated(WAIT_FOR_FILE, wait_for_file)
        .with_isolated(REPORT_AND_WAIT, report_and_wait)
        .with_isolated(SET_FINAL_STATE, set_final_state)
        .with_isolated(RETRY, retry)
        .with_isolated(PARSE, |text: String| text.parse::<i64>())
        .with_isolated(ECHO, Ok::<String, Infallible>)
        .with_isolated(ALLOCATE, allocate)
        .with_isolated(USE_STDIO, use_stdio)
        .with_isolated(DELIVERY, delivery)
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
    // In a loop: Rust's own handler of SIGSEGV ignores the first one that no
    // stack overflow explains, and uninstalls itself.
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
    write_pid(&folder)?;
    crash("KILL")
}

fn hang(folder: String) -> Result<(), TaskError> {
    write_pid(&folder)?;
    loop {
        thread::park();
    }
}

fn obey_soft_limit(ctx: Context<Phrases>) -> Result<String, Infallible> {
    while !ctx.is_soft_time_limit_reached() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok("obeyed".to_owned())
}

async fn async_obey_soft_limit(ctx: Context<Phrases>) -> Result<String, Infallible> {
    ctx.soft_time_limit().await;
    Ok("obeyed".to_owned())
}

fn obey_shutdown(ctx: Context<Phrases>, folder: String) -> Result<String, TaskError> {
    write_pid(&folder)?;
    while !ctx.is_shutdown_requested() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok("obeyed".to_owned())
}

fn wait_for_file(folder: String) -> Result<u32, TaskError> {
    write_pid(&folder)?;
    while !Path::new(&folder).join("go").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(std::process::id())
}

fn report_and_wait(ctx: Context<Phrases>, folder: String) -> Result<u32, TaskError> {
    Handle::current().block_on(ctx.update_state("WAITING", "for a file"))?;
    wait_for_file(folder)
}

fn set_final_state(ctx: Context<Phrases>) -> Result<String, Infallible> {
    let set = Handle::current().block_on(ctx.update_state("SUCCESS", 1));
    Ok(set.map_or_else(|error| error.to_string(), |()| "stored".to_owned()))
}

fn retry(ctx: Context<Phrases>, times: u32) -> Result<u32, TaskError> {
    if ctx.retries() < times {
        let cause = TaskError::exception("ValueError", "not yet");
        return Err(TaskError::retry().after(Duration::ZERO).because(cause));
    }
    Ok(ctx.retries())
}

fn allocate(mib: usize) -> Result<u32, Infallible> {
    std::mem::forget(vec![1_u8; mib << 20]);
    Ok(std::process::id())
}

fn use_stdio() -> Result<String, TaskError> {
    println!("a child prints");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line)
}

fn delivery(ctx: Context<Phrases>) -> Result<(String, u32, String), Infallible> {
    let queue = ctx.delivery_info().routing_key.clone();
    let header = ctx.header("color");
    let header = header.and_then(|color| color.as_str().map(str::to_owned));
    Ok((queue, ctx.retries(), header.unwrap_or_default()))
}

/// Writes a file with the process id as its name.
fn write_pid(folder: &str) -> Result<(), TaskError> {
    let pid = std::process::id();
    // Renamed, so that the file is complete when it is seen.
    let (new, path) = (format!("{folder}/.{pid}"), format!("{folder}/{pid}"));
    std::fs::write(&new, "")?;
    Ok(std::fs::rename(new, path)?)
}
