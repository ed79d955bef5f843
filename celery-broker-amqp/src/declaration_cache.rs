//! The queues and exchanges that are known to exist on the server, so that they
//! are not declared again for every message.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::sync::lock;

/// The names that were declared or found on one connection.
#[derive(Debug, Default)]
pub(crate) struct DeclarationCache {
    names: Mutex<[HashSet<String>; 2]>,
}

/// The kind of object that a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntityKind {
    Queue,
    Exchange,
}

impl DeclarationCache {
    pub(crate) fn contains(&self, kind: EntityKind, name: &str) -> bool {
        lock(&self.names)[kind as usize].contains(name)
    }

    pub(crate) fn insert(&self, kind: EntityKind, name: &str) {
        lock(&self.names)[kind as usize].insert(name.to_owned());
    }

    pub(crate) fn remove(&self, kind: EntityKind, name: &str) {
        lock(&self.names)[kind as usize].remove(name);
    }
}
