//! The servers of a story: a broker that holds copies of one message, and a result
//! backend.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The tag of a delivery.
pub(super) type Tag = u32;

/// The number of a copy of the message.
pub(super) type Copy = usize;

/// A request that changes a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Ack(Tag),
    Reject(Tag),
    Requeue(Tag),
    Defer(Tag),
    Restore(Tag),
    /// Stores a result or sends messages, by its name.
    Write(String),
}

/// Where a copy of the message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Queue,
    /// Delivered, not settled.
    Unacked(Tag),
    Acknowledged,
    Rejected,
}

/// The state of broker and backend.
#[derive(Debug, Default)]
pub(super) struct Server {
    places: Vec<Place>,
    queue: VecDeque<Copy>,
    copy_of: BTreeMap<Tag, Copy>,
    /// Copies that were delivered before.
    redelivered: BTreeSet<Copy>,
    /// Acknowledged copies of which another copy was restored.
    restored: BTreeSet<Copy>,
    /// The results and messages that were written, by name.
    written: BTreeSet<String>,
}

impl Server {
    /// A broker whose queue has one message.
    pub(super) fn new() -> Self {
        let mut server = Self::default();
        server.add_copy();
        server
    }

    fn add_copy(&mut self) -> Copy {
        let copy = self.places.len();
        self.places.push(Place::Queue);
        self.queue.push_front(copy);
        copy
    }

    /// Delivers the next message: its tag, and whether it is redelivered.
    pub(super) fn deliver(&mut self) -> Option<(Tag, bool)> {
        let copy = self.queue.pop_front()?;
        let tag = Tag::try_from(self.copy_of.len()).expect("a story is short");
        self.copy_of.insert(tag, copy);
        self.places[copy] = Place::Unacked(tag);
        Some((tag, !self.redelivered.insert(copy)))
    }

    /// Carries out a request; returns whether it changed anything.
    pub(super) fn apply(&mut self, request: &Request) -> bool {
        match request {
            Request::Ack(tag) => self.leave(*tag, Place::Acknowledged),
            Request::Reject(tag) => self.leave(*tag, Place::Rejected),
            // A deferred message is delivered later, which is no different here.
            Request::Requeue(tag) | Request::Defer(tag) => self.requeue(*tag),
            Request::Restore(tag) => {
                if !self.requeue(*tag) {
                    self.restored.insert(self.copy_of[tag]);
                    let copy = self.add_copy();
                    self.redelivered.insert(copy);
                }
                true
            }
            Request::Write(name) => {
                self.written.insert(name.clone());
                true
            }
        }
    }

    /// Requeues an unacked message; returns whether it was unacked.
    pub(super) fn requeue(&mut self, tag: Tag) -> bool {
        let copy = self.copy_of[&tag];
        let changed = self.leave(tag, Place::Queue);
        if changed {
            self.queue.push_front(copy);
        }
        changed
    }

    fn leave(&mut self, tag: Tag, place: Place) -> bool {
        let copy = self.copy_of[&tag];
        let is_unacked = self.places[copy] == Place::Unacked(tag);
        if is_unacked {
            self.places[copy] = place;
        }
        is_unacked
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Returns where the copy is that was delivered with this tag.
    pub(super) fn place_of(&self, tag: Tag) -> Place {
        self.places[self.copy_of[&tag]]
    }

    pub(super) fn has_restored(&self, copy: Copy) -> bool {
        self.restored.contains(&copy)
    }

    pub(super) fn has_written(&self, name: &str) -> bool {
        self.written.contains(name)
    }

    pub(super) fn copy_of(&self, tag: Tag) -> Copy {
        self.copy_of[&tag]
    }
}
