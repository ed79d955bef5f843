//! What is known of the targets of messages.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lapin::types::ShortString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::RefusedMessage;
use crate::sync::lock;

/// The maximum number of unconfirmed messages for one target.
const MAX_UNCONFIRMED: usize = 2048;

/// The same for a target that confirms nothing. A quorum queue stops the channel from
/// which it has 32 messages that it has not confirmed, and RabbitMQ stops reading from
/// the connection after 400 more messages on that channel.
const MAX_UNCONFIRMED_SLOW: usize = 16;

/// The number of known targets from which the unused ones are forgotten.
const MANY_TARGETS: usize = 1024;

/// The size in bytes of the largest body that RabbitMQ accepts by default, since its
/// version 4.
const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// The rooms of all targets, and what the server has accepted and refused. Shared by the
/// connections of a broker, and kept when they are replaced.
#[derive(Debug)]
pub(crate) struct Targets {
    rooms: Mutex<HashMap<Target, Arc<Room>>>,
    /// The exchanges that exist.
    exchanges: Mutex<HashSet<String>>,
    /// The exchanges of refused messages.
    refused_exchanges: Mutex<HashSet<String>>,
    /// The size in bytes of the largest body that the server accepts.
    max_size: AtomicUsize,
}

/// The exchange and routing key of a message.
type Target = (ShortString, ShortString);

#[derive(Debug)]
struct Room {
    places: Arc<Semaphore>,
    /// The places while the target confirms nothing.
    slow_places: Arc<Semaphore>,
    is_slow: AtomicBool,
}

/// The place of an unconfirmed message, which it takes until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    /// It is one of the few places of a target that confirms nothing.
    pub(super) is_slow: bool,
    _permit: OwnedSemaphorePermit,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            rooms: Mutex::default(),
            exchanges: Mutex::default(),
            refused_exchanges: Mutex::default(),
            max_size: AtomicUsize::new(MAX_MESSAGE_SIZE),
        }
    }
}

impl Targets {
    /// Records that the server has closed a channel because of a message.
    pub(super) fn separate(&self, refused: RefusedMessage<'_>) {
        match refused {
            // Those for queues always share a channel.
            RefusedMessage::OfExchange("") => {}
            RefusedMessage::OfExchange(exchange) => {
                lock(&self.refused_exchanges).insert(exchange.to_owned());
            }
            RefusedMessage::LargerThan(size) => self.max_size.store(size, Ordering::Relaxed),
        }
    }

    /// Records that an exchange exists.
    pub(crate) fn add_exchange(&self, exchange: &str) {
        let mut exchanges = lock(&self.exchanges);
        if !exchanges.contains(exchange) {
            exchanges.insert(exchange.to_owned());
        }
    }

    /// Reports whether the exchange exists and has refused no message.
    pub(super) fn is_trusted(&self, exchange: &str) -> bool {
        exchange.is_empty()
            || (lock(&self.exchanges).contains(exchange)
                && !lock(&self.refused_exchanges).contains(exchange))
    }

    pub(super) fn max_size(&self) -> usize {
        self.max_size.load(Ordering::Relaxed)
    }

    /// Waits for a place.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn enter(&self, exchange: &ShortString, routing_key: &ShortString) -> Place {
        let room = self.room((exchange.clone(), routing_key.clone()));
        loop {
            let is_slow = room.is_slow();
            let places = match is_slow {
                true => &room.slow_places,
                false => &room.places,
            };
            let permit = Arc::clone(places).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            // The target may have stopped confirming during the wait.
            if is_slow || !room.is_slow() {
                return Place {
                    room,
                    is_slow,
                    _permit: permit,
                };
            }
        }
    }

    fn room(&self, target: Target) -> Arc<Room> {
        let mut rooms = lock(&self.rooms);
        if rooms.len() >= MANY_TARGETS && !rooms.contains_key(&target) {
            rooms.retain(|_, room| Arc::strong_count(room) > 1 || room.is_slow());
        }
        Arc::clone(rooms.entry(target).or_insert_with(|| {
            Arc::new(Room {
                places: Arc::new(Semaphore::new(MAX_UNCONFIRMED)),
                slow_places: Arc::new(Semaphore::new(MAX_UNCONFIRMED_SLOW)),
                is_slow: AtomicBool::new(false),
            })
        }))
    }
}

impl Room {
    fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Leaves few places for the target until it confirms a message.
    pub(super) fn mark_slow(&self) {
        self.room.is_slow.store(true, Ordering::Relaxed);
    }

    /// Records that the target has confirmed a message.
    pub(super) fn mark_confirmed(&self) {
        if self.room.is_slow() {
            self.room.is_slow.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt;

    use super::*;

    fn enter(targets: &Targets, queue: &str) -> Option<Place> {
        let (exchange, queue) = (ShortString::default(), queue.into());
        targets.enter(&exchange, &queue).now_or_never()
    }

    fn enter_all(targets: &Targets, queue: &str) -> Vec<Place> {
        std::iter::from_fn(|| enter(targets, queue)).collect()
    }

    #[test]
    fn slow_target_has_few_places_until_it_confirms() {
        let targets = Targets::default();
        let place = enter(&targets, "q").unwrap();
        place.mark_slow();
        let slow = enter_all(&targets, "q");
        assert_eq!(slow.len(), MAX_UNCONFIRMED_SLOW);
        assert_eq!(enter_all(&targets, "other").len(), MAX_UNCONFIRMED);
        place.mark_confirmed();
        assert_eq!(enter_all(&targets, "q").len(), MAX_UNCONFIRMED - 1);
    }

    #[test]
    fn unused_targets_are_forgotten_except_slow_ones() {
        let targets = Targets::default();
        let held = enter(&targets, "held").unwrap();
        enter(&targets, "slow").unwrap().mark_slow();
        for number in 0..3 * MANY_TARGETS {
            enter(&targets, &number.to_string()).unwrap();
        }
        assert!(lock(&targets.rooms).len() <= MANY_TARGETS);
        assert_eq!(enter_all(&targets, "slow").len(), MAX_UNCONFIRMED_SLOW);
        assert_eq!(enter_all(&targets, "held").len(), MAX_UNCONFIRMED - 1);
        drop(held);
    }
}
