//! The tasks of the example `chords`: members that are retried or fail, a body
//! and an errback. Body and errback record their runs in Redis.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "the sender uses some of them, the worker others"
)]

use std::fmt;
use std::time::Duration;

use celery::{Context, FailedTask, Task, TaskError, Tasks};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::sync::OnceCell;

/// A member of a chord, which returns its place. At one place in twenty the first
/// attempt is retried. With `fails` every attempt fails.
pub const MEMBER: Task<(u32, u32, bool), u32> =
    Task::new("chords.member").params(&["chord", "place", "fails=false"]);

/// The body of the chord with this number, which returns the sum of the places.
pub const BODY: Task<(Vec<u32>, u32), u32> = Task::new("chords.body").params(&["places", "chord"]);

/// The errback of the chord with this number.
///
/// The worker that calls it holds the chord's claim for at most its time limit: another
/// worker resumes the chord soon after a crash.
pub const ERRBACK: Task<(u32,), ()> = Task::new("chords.errback")
    .params(&["chord"])
    .time_limits(None, Some(Duration::from_secs(5)));

/// The list in Redis with one [`Entry`] for each run of a body or an errback.
pub const RUNS_KEY: &str = "runs";

/// A run of a body or an errback: which of the two, for which chord, and the
/// body's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: String,
    pub chord: u32,
    pub body_id: String,
}

impl Entry {
    /// Parses the output of [`Display`](fmt::Display).
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            what: words.next()?.to_owned(),
            chord: words.next()?.parse().ok()?,
            body_id: words.next()?.to_owned(),
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.what, self.chord, self.body_id)
    }
}

/// Records runs in Redis.
pub struct RunRecorder {
    client: redis::Client,
    connection: OnceCell<MultiplexedConnection>,
}

impl RunRecorder {
    pub fn new(url: &str) -> redis::RedisResult<Self> {
        Ok(Self {
            client: redis::Client::open(url)?,
            connection: OnceCell::new(),
        })
    }

    async fn record(&self, what: &str, chord: u32, body_id: &str) -> Result<(), TaskError> {
        let entry = Entry {
            what: what.to_owned(),
            chord,
            body_id: body_id.to_owned(),
        };
        let connecting = || self.client.get_multiplexed_async_connection();
        let mut connection = self.connection.get_or_try_init(connecting).await?.clone();
        let () = connection.rpush(RUNS_KEY, entry.to_string()).await?;
        Ok(())
    }
}

pub fn tasks(recorder: RunRecorder) -> Tasks {
    Tasks::new()
        .with(MEMBER, member)
        .with(BODY, body)
        .errback(ERRBACK, errback)
        .with_state(recorder)
}

async fn member(
    ctx: Context<RunRecorder>,
    chord: u32,
    place: u32,
    fails: bool,
) -> Result<u32, TaskError> {
    if (chord + place).is_multiple_of(20) && ctx.retries() == 0 {
        return Err(TaskError::retry().after(Duration::ZERO));
    }
    if fails {
        return Err(TaskError::exception("ValueError", format!("chord {chord}")));
    }
    Ok(place)
}

async fn body(ctx: Context<RunRecorder>, places: Vec<u32>, chord: u32) -> Result<u32, TaskError> {
    ctx.state().record("body", chord, ctx.id()).await?;
    Ok(places.into_iter().sum())
}

async fn errback(failed: FailedTask<RunRecorder>, chord: u32) -> Result<(), TaskError> {
    failed.state().record("errback", chord, failed.id()).await
}
