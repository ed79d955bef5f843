//! Asking the peers at the start what was revoked, and how late it is.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{ControlReply, ControlRequest, Map, ReplyAddress, Value};
use tokio::sync::oneshot;

use crate::boundary::{BoxFuture, Broker, ServiceError};
use crate::config::ControlSettings;
use crate::env;
use crate::logical_clock::LogicalClock;

/// How long peers may take to answer, as in Celery.
const PATIENCE: Duration = Duration::from_secs(1);

/// Replies that are read; a fleet that is larger has told what it knows by then.
const MOST: usize = 1024;

/// What the peers answer in time. A broker that is away is no reason to wait,
/// nor is one that says how many there are, once they have answered.
///
/// `asking` is dropped when the question is out, or will not be put: who listens
/// before would hear it himself and pass for a peer.
pub(crate) fn ask(
    broker: &Arc<dyn Broker>,
    clock: &LogicalClock,
    settings: &ControlSettings,
    hostname: &str,
    asking: oneshot::Sender<()>,
) -> BoxFuture<'static, Vec<ControlReply>> {
    let (broker, clock) = (Arc::clone(broker), clock.clone());
    let settings = settings.clone();
    let hostname = hostname.to_owned();
    Box::pin(async move {
        let mut replies = Vec::new();
        let collecting = collect(&*broker, &clock, &settings, &hostname, &mut replies, asking);
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, collecting).await {
            tracing::warn!("the other workers cannot be asked: {error}");
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
    asking: oneshot::Sender<()>,
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
    let listeners = broker.broadcast(&settings.requests(), "", &message).await?;
    drop(asking);
    let most = listeners.map_or(MOST, |count| MOST.min(count as usize));
    while replies.len() < most {
        let reply = ControlReply::read(&inbox.next().await?);
        replies.extend(reply.ok().filter(|reply| reply.ticket == request.ticket));
    }
    Ok(())
}

/// We start, so there is nothing yet that others could learn from us.
fn arguments(hostname: &str) -> Map {
    let mut arguments = Map::new();
    arguments.insert("from_node", hostname);
    arguments.insert("revoked", Value::Array(Vec::new()));
    arguments
}
