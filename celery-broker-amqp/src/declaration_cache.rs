//! What is known to exist on the server, so that it is not declared for every
//! message.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::sync::lock;

/// Names that were declared or seen on one connection.
#[derive(Debug, Default)]
pub(crate) struct DeclarationCache {
    names: Mutex<[HashSet<String>; 2]>,
}

/// What a name is the name of.
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
