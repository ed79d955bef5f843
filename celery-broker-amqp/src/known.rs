//! What is known to exist on the server, so that it is not declared for every
//! message.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::link::lock;

/// Names that were declared or seen on one connection.
#[derive(Debug, Default)]
pub(crate) struct Known {
    names: Mutex<[HashSet<String>; 2]>,
}

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Queue,
    Exchange,
}

impl Known {
    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        lock(&self.names)[kind as usize].contains(name)
    }

    pub(crate) fn note(&self, kind: Kind, name: &str) {
        lock(&self.names)[kind as usize].insert(name.to_owned());
    }

    pub(crate) fn forget(&self, kind: Kind, name: &str) {
        lock(&self.names)[kind as usize].remove(name);
    }
}
