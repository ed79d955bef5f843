//! The tasks of the example `chords`: members that are retried or fail, a body
//! and an errback, each of which writes down that it ran.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "who sends the tasks does not run them"
)]

use std::fmt;

use celery::{Context, FailedTask, Task, TaskError, Tasks};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::sync::OnceCell;

/// A member of a chord, by the chord and its place: answers the place. The first
/// attempt is retried of one place in twenty, and a place that shall fail fails
/// always.
pub const MEMBER: Task<(u32, u32, bool), u32> =
    Task::new("chords.member").params(&["chord", "place", "fails=false"]);

/// The body of the chord with this number: answers the sum.
pub const BODY: Task<(Vec<u32>, u32), u32> = Task::new("chords.body").params(&["places", "chord"]);

/// The errback of the chord with this number.
pub const ERRBACK: Task<(u32,), ()> = Task::new("chords.errback").params(&["chord"]);

/// The list in Redis with one entry for each run of a body or an errback.
pub const LEDGER: &str = "ledger";

/// An entry of the ledger: what ran for which chord, and the body's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: String,
    pub chord: u32,
    pub body_id: String,
}

impl Entry {
    /// Reads what [`Display`](fmt::Display) writes.
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

/// The Redis that has the ledger.
pub struct Book {
    client: redis::Client,
    connection: OnceCell<MultiplexedConnection>,
}

impl Book {
    pub fn at(url: &str) -> redis::RedisResult<Self> {
        Ok(Self {
            client: redis::Client::open(url)?,
            connection: OnceCell::new(),
        })
    }

    async fn note(&self, what: &str, chord: u32, body_id: &str) -> Result<(), TaskError> {
        let entry = Entry {
            what: what.to_owned(),
            chord,
            body_id: body_id.to_owned(),
        };
        let connecting = || self.client.get_multiplexed_async_connection();
        let mut connection = self.connection.get_or_try_init(connecting).await?.clone();
        let () = connection.rpush(LEDGER, entry.to_string()).await?;
        Ok(())
    }
}

pub fn tasks(book: Book) -> Tasks {
    Tasks::new()
        .with(MEMBER, member)
        .with(BODY, body)
        .errback(ERRBACK, errback)
        .with_state(book)
}

async fn member(ctx: Context<Book>, chord: u32, place: u32, fails: bool) -> Result<u32, TaskError> {
    if (chord + place).is_multiple_of(20) && ctx.retries() == 0 {
        return Err(TaskError::retry().after(std::time::Duration::ZERO));
    }
    match fails {
        false => Ok(place),
        true => Err(TaskError::exception("ValueError", format!("chord {chord}"))),
    }
}

async fn body(ctx: Context<Book>, places: Vec<u32>, chord: u32) -> Result<u32, TaskError> {
    ctx.state().note("body", chord, ctx.id()).await?;
    Ok(places.into_iter().sum())
}

async fn errback(failed: FailedTask<Book>, chord: u32) -> Result<(), TaskError> {
    failed.state().note("errback", chord, failed.id()).await
}
