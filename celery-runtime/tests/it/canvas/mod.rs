//! Workflows on the in-memory broker.

mod failures;
mod malformed;
mod polled_chords;
mod workflows;

use std::sync::{Arc, Mutex};

use celery_runtime::{Context, FailedTask, Task, TaskError, Tasks, group};

use crate::support::{Running, Setup};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const SUM: Task<(Vec<i64>,), i64> = Task::new("tasks.sum").params(&["numbers"]);
const TOTAL: Task<(Vec<Vec<i64>>,), i64> = Task::new("tasks.total").params(&["numbers"]);
const FAIL: Task<(i64,), i64> = Task::new("tasks.fail").params(&["code"]);
const FAIL_ON: Task<(Vec<i64>,), i64> = Task::new("tasks.fail_on").params(&["numbers"]);
const SUM_ALL: Task<(Vec<i64>,), i64> = Task::new("tasks.sum_all").params(&["numbers"]);
const SPREAD: Task<(i64,), Vec<i64>> = Task::new("tasks.spread").params(&["n"]);
const GROW: Task<(i64,), i64> = Task::new("tasks.grow").params(&["n"]);
const NOTE: Task<(String,), ()> = Task::new("tasks.note").params(&["label"]);
const OLD_NOTE: Task<(String,), ()> = Task::new("tasks.old_note").params(&["failed"]);
const HANG: Task<(), ()> = Task::new("tasks.hang").params(&[]);
const SAY: Task<(String, i64), ()> = Task::new("tasks.say").params(&["label", "n"]);

/// The notes that tasks and errbacks take.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    /// Removes and returns the notes in alphabetical order.
    fn take(&self) -> Vec<String> {
        let mut notes = std::mem::take(&mut *self.0.lock().unwrap());
        notes.sort();
        notes
    }
}

/// Returns the tasks of these tests.
fn tasks(notes: &Notes) -> Tasks {
    Tasks::new()
        .with(ADD, async |x: i64, y: i64| Ok::<_, TaskError>(x + y))
        .with(SUM, async |numbers: Vec<i64>| {
            Ok::<_, TaskError>(numbers.iter().sum::<i64>())
        })
        .with(TOTAL, async |numbers: Vec<Vec<i64>>| {
            Ok::<_, TaskError>(numbers.iter().flatten().sum::<i64>())
        })
        .with(FAIL, async |code: i64| {
            Err::<i64, _>(TaskError::exception("ValueError", format!("code {code}")))
        })
        .with(FAIL_ON, async |_: Vec<i64>| {
            Err::<i64, _>(TaskError::exception("KeyError", "body"))
        })
        .with(SUM_ALL, async |numbers: Vec<i64>| {
            match numbers.as_slice() {
                [] => Ok(0),
                [one] => Ok(*one),
                [first, rest @ ..] => {
                    let start = ADD.s((*first, 0));
                    let all = rest.iter().fold(start, |sum, n| sum.then(ADD.p((*n,))));
                    Err(SUM_ALL.replaced_by(all))
                }
            }
        })
        .with(SPREAD, async |n: i64| {
            let all = group((0..n).map(|n| ADD.s((n, n))));
            Err::<Vec<i64>, _>(TaskError::replace(all))
        })
        .with(GROW, async |ctx: Context<Notes>, n: i64| {
            for more in 0..n {
                ctx.add_to_chord(ADD.s((more, 0))).await?;
            }
            Ok::<_, TaskError>(n)
        })
        .errback(NOTE, note)
        .with(OLD_NOTE, async |ctx: Context<Notes>, failed: String| {
            let known = ctx.parent_id().as_deref() == Some(&failed);
            ctx.state().add(format!("old: {known}"));
            Ok::<_, TaskError>(())
        })
        .with(SAY, async |ctx: Context<Notes>, label: String, n: i64| {
            ctx.state().add(format!("{label} {n}"));
            Ok::<_, TaskError>(())
        })
        .with_state(notes.clone())
}

/// Notes the failure.
async fn note(failed: FailedTask<Notes>, label: String) -> Result<(), TaskError> {
    let exception = failed.exception().map(ToString::to_string);
    let (task, exception) = (failed.task().unwrap_or("?"), exception.unwrap_or_default());
    failed.state().add(format!("{label}: {task} {exception}"));
    Ok(())
}

/// Starts a worker with these tasks.
fn start() -> (Setup, Notes, Running) {
    let (setup, notes) = (Setup::new(), Notes::default());
    let worker = setup.start(tasks(&notes));
    (setup, notes, worker)
}
