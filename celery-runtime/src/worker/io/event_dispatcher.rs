//! Builds monitoring events and replies to control commands:
//! [`EventDispatcher`].

use std::time::{Duration, SystemTime};

use celery_protocol::{ControlReply, Event, Map, ReplyAddress, Value};

use crate::boundary::Exchange;
use crate::env;
use crate::logical_clock::LogicalClock;
use crate::worker::io::event_publisher::{BATCH_SIZE, EventPublisher, Outgoing};

/// Stamps events and replies with the worker's hostname and logical clock, and
/// passes them to the publisher.
#[derive(Debug)]
pub(crate) struct EventDispatcher {
    publisher: EventPublisher,
    clock: LogicalClock,
    hostname: String,
    exchange: Exchange,
    /// Task events that are not passed on yet.
    batch: Vec<Event>,
    /// Hours by which the local time zone is behind UTC.
    utcoffset: f64,
}

impl EventDispatcher {
    pub(crate) fn new(
        publisher: EventPublisher,
        clock: LogicalClock,
        hostname: &str,
        exchange: Exchange,
    ) -> Self {
        Self {
            publisher,
            clock,
            hostname: hostname.to_owned(),
            exchange,
            batch: Vec::new(),
            utcoffset: utcoffset(),
        }
    }

    /// Adds an event about a task to the batch, which is sent when it is full or
    /// by [`flush`](Self::flush).
    pub(crate) fn task_event(&mut self, kind: &str, fields: Map, now: SystemTime) {
        let event = self.event(kind, fields, now);
        self.batch.push(event);
        if self.batch.len() >= BATCH_SIZE {
            self.flush();
        }
    }

    /// Sends the batch of task events.
    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.publisher.send(Outgoing::Tasks {
            exchange: self.exchange.clone(),
            events: std::mem::take(&mut self.batch),
        });
    }

    /// Sends an event about the worker, after the batch of task events.
    pub(crate) fn worker_event(&mut self, kind: &str, fields: Map, now: SystemTime) {
        self.flush();
        let event = self.event(kind, fields, now);
        let encoded = Event::write_all(std::slice::from_ref(&event));
        self.publish(event.routing_key(), encoded);
    }

    /// Replies to a control command.
    pub(crate) fn reply(&mut self, address: &ReplyAddress, ticket: Option<String>, value: Value) {
        let mut reply = ControlReply::new(self.hostname.as_str(), value);
        reply.ticket = ticket;
        reply.clock = self.clock.forward();
        match reply.write() {
            Ok(message) => self.publisher.send(Outgoing::Message {
                exchange: Exchange::direct(address.exchange.as_str()).transient(),
                routing_key: address.routing_key.clone(),
                message: Box::new(message),
            }),
            Err(error) => tracing::error!("cannot encode the reply to a control command: {error}"),
        }
    }

    /// Sends the batch, and waits at most `deadline` until everything is
    /// published.
    pub(crate) async fn close(mut self, deadline: Duration) {
        self.flush();
        self.publisher.close(deadline).await;
    }

    fn event(&self, kind: &str, fields: Map, now: SystemTime) -> Event {
        let mut event = Event::new(kind, self.hostname.as_str());
        event.utcoffset = self.utcoffset;
        event.pid = std::process::id();
        event.clock = self.clock.forward();
        event.timestamp = env::unix_seconds(now);
        event.fields = fields;
        event
    }

    fn publish(
        &mut self,
        routing_key: String,
        encoded: Result<celery_protocol::Message, celery_protocol::EncodeError>,
    ) {
        match encoded {
            Ok(message) => self.publisher.send(Outgoing::Message {
                exchange: self.exchange.clone(),
                routing_key,
                message: Box::new(message),
            }),
            Err(error) => tracing::error!("cannot encode an event: {error}"),
        }
    }
}

/// Returns the hours by which the local time zone is behind UTC.
fn utcoffset() -> f64 {
    let seconds = jiff::Zoned::now().offset().seconds();
    // The subtraction makes UTC 0.0; a negation would make it -0.0.
    0.0 - f64::from(seconds) / 3600.0
}
