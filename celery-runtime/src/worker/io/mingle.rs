//! Mingle: asks the other workers at the start for their revoked ids and logical
//! clocks, with Celery's `hello` command.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{ControlReply, ControlRequest, Map, ReplyAddress, Value};
use tokio::sync::oneshot;

use crate::boundary::{BoxFuture, Broker, ServiceError};
use crate::config::ControlSettings;
use crate::env;
use crate::logical_clock::LogicalClock;

/// How long the other workers may take to reply, as in Celery.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Most replies that are read. Workers synchronize their revocations, so that
/// further replies rarely add anything.
const MAX_REPLIES: usize = 1024;

/// Sends `hello` and returns the replies that arrive within [`REPLY_TIMEOUT`].
///
/// Returns earlier when the broker is not available, and, if the broker reports
/// the number of subscribers, as soon as all of them have replied.
///
/// `hello_sent` is dropped once the command is sent or cannot be sent. Until
/// then this worker must not subscribe to control commands, or it would receive
/// its own `hello` and count as one of the other workers.
pub(crate) fn send_hello(
    broker: &Arc<dyn Broker>,
    clock: &LogicalClock,
    settings: &ControlSettings,
    hostname: &str,
    hello_sent: oneshot::Sender<()>,
) -> BoxFuture<'static, Vec<ControlReply>> {
    let (broker, clock) = (Arc::clone(broker), clock.clone());
    let settings = settings.clone();
    let hostname = hostname.to_owned();
    Box::pin(async move {
        let mut replies = Vec::new();
        let collecting = collect(
            &*broker,
            &clock,
            &settings,
            &hostname,
            &mut replies,
            hello_sent,
        );
        if let Ok(Err(error)) = tokio::time::timeout(REPLY_TIMEOUT, collecting).await {
            tracing::warn!("mingle: cannot reach other workers: {error}");
        }
        replies
    })
}

async fn collect(
    broker: &dyn Broker,
    clock: &LogicalClock,
    settings: &ControlSettings,
    hostname: &str,
    replies: &mut Vec<ControlReply>,
    hello_sent: oneshot::Sender<()>,
) -> Result<(), ServiceError> {
    let key = env::uuid();
    let mailbox = settings.reply_mailbox(&key);
    let mut inbox = broker.subscribe(&mailbox).await?;

    let mut request = ControlRequest::new("hello");
    request.arguments = arguments(hostname);
    request.ticket = Some(env::uuid());
    request.reply_to = Some(ReplyAddress::new(settings.replies().name, key));
    request.clock = clock.forward();
    let Ok(message) = request.write() else {
        return Ok(());
    };
    let subscribers = broker.broadcast(&settings.requests(), "", &message).await?;
    drop(hello_sent);
    let limit = subscribers.map_or(MAX_REPLIES, |count| MAX_REPLIES.min(count as usize));
    while replies.len() < limit {
        let reply = ControlReply::read(&inbox.next().await?);
        replies.extend(reply.ok().filter(|reply| reply.ticket == request.ticket));
    }
    Ok(())
}

/// The revoked ids are empty: this worker is starting and has none to share.
fn arguments(hostname: &str) -> Map {
    let mut arguments = Map::new();
    arguments.insert("from_node", hostname);
    arguments.insert("revoked", Value::Array(Vec::new()));
    arguments
}
