//! Sends a task from a synchronous program with the blocking `redis` client.
//!
//! ```text
//! cargo run -p celery-protocol --example sync_producer -- redis://localhost:6379/0
//! ```
//!
//! Any Celery worker, Python or Rust, that consumes the queue `celery` and has
//! the task `tasks.add(x, y)` runs it. The result is stored under
//! `celery-task-meta-<id>`.

use std::error::Error;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use celery_protocol::kombu::{self, EnvelopeRoute};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body, repr};

const QUEUE: &str = "celery";

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "redis://localhost:6379/0".to_owned());
    let mut connection = redis::Client::open(url.as_str())?.get_connection()?;

    declare(&mut connection)?;
    let id = unique("task");
    send(&mut connection, &task(&id, 2, 3)?)?;
    println!("sent tasks.add(2, 3) as {id}");
    Ok(())
}

/// Binds the queue to its exchange, as a Python producer does before it sends.
fn declare(connection: &mut redis::Connection) -> redis::RedisResult<()> {
    let member = kombu::binding_member(QUEUE, "", QUEUE);
    redis::cmd("SADD")
        .arg(kombu::binding_key(QUEUE))
        .arg(member)
        .query(connection)
}

/// Builds the message. The crate reads no clock and generates no random
/// numbers, so ids, times and the name of the sender are set here.
fn task(id: &str, x: i64, y: i64) -> Result<Message, Box<dyn Error>> {
    let args = (x, y);
    let mut headers = TaskHeaders::new("tasks.add", id.to_owned());
    headers.argsrepr = Some(repr::args(&args).into());
    headers.kwargsrepr = Some(repr::kwargs(&()).into());
    headers.origin = Some(format!("gen{}@localhost", process::id()).into());
    let body = encode_body(Serializer::Json, &args, &(), &Embed::default())?;
    Ok(Message::task(headers, Serializer::Json, body))
}

fn send(connection: &mut redis::Connection, message: &Message) -> Result<(), Box<dyn Error>> {
    let route = EnvelopeRoute {
        exchange: "",
        routing_key: QUEUE,
    };
    let envelope = kombu::encode(message, route, &unique("tag"))?;
    let step = kombu::priority_step(message.properties.priority.unwrap_or(0));
    let key = kombu::priority_key(QUEUE, step);
    redis::cmd("LPUSH")
        .arg(key)
        .arg(envelope)
        .query::<()>(connection)?;
    Ok(())
}

/// Returns an id that is unique within this process and time. A real producer
/// generates UUIDs.
fn unique(what: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{what}-{}-{}", process::id(), now.as_nanos())
}
