//! Tells those who watch: makes events and replies of what the worker does.

use std::time::{Duration, SystemTime};

use celery_protocol::{ControlReply, Event, Map, ReplyAddress, Value};

use crate::boundary::Exchange;
use crate::env;
use crate::logical_clock::LogicalClock;
use crate::worker::io::event_publisher::{BATCH, EventPublisher, Outgoing};

#[derive(Debug)]
pub(crate) struct EventDispatcher {
    publisher: EventPublisher,
    clock: LogicalClock,
    hostname: String,
    exchange: Exchange,
    batch: Vec<Event>,
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

    /// Something happened to a task. Sent with others by [`flush`](Self::flush).
    pub(crate) fn tell_of_task(&mut self, kind: &str, fields: Map, now: SystemTime) {
        let event = self.event(kind, fields, now);
        self.batch.push(event);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Sends what has collected.
    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.publisher.send(Outgoing::Tasks {
            exchange: self.exchange.clone(),
            events: std::mem::take(&mut self.batch),
        });
    }

    /// Something happened to the worker.
    pub(crate) fn tell_of_worker(&mut self, kind: &str, fields: Map, now: SystemTime) {
        self.flush();
        let event = self.event(kind, fields, now);
        let written = Event::write_all(std::slice::from_ref(&event));
        self.post(event.routing_key(), written);
    }

    /// Answers a request.
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
            Err(error) => tracing::error!("cannot write the reply to a control command: {error}"),
        }
    }

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

    fn post(
        &mut self,
        routing_key: String,
        written: Result<celery_protocol::Message, celery_protocol::EncodeError>,
    ) {
        match written {
            Ok(message) => self.publisher.send(Outgoing::Message {
                exchange: self.exchange.clone(),
                routing_key,
                message: Box::new(message),
            }),
            Err(error) => tracing::error!("cannot write an event: {error}"),
        }
    }
}

/// Hours by which this machine's time zone is behind UTC.
fn utcoffset() -> f64 {
    let seconds = jiff::Zoned::now().offset().seconds();
    // Written so that UTC is not -0.0.
    0.0 - f64::from(seconds) / 3600.0
}
