//! A bounded table that forgets what was not touched for the longest time.

use std::collections::{BTreeMap, HashMap};

/// Values by name.
#[derive(Clone, Debug)]
pub(crate) struct LruTable<T> {
    values: HashMap<String, (u64, T)>,
    order: BTreeMap<u64, String>,
    next: u64,
    most: usize,
}

impl<T> LruTable<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            values: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            most: most.max(1),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.values.get(name).map(|(_, value)| value)
    }

    /// The value of that name, made if there is none, as the newest one.
    pub(crate) fn touch(&mut self, name: &str, make: impl FnOnce() -> T) -> &mut T {
        let turn = self.next;
        self.next += 1;
        if let Some((last, _)) = self.values.get(name) {
            self.order.remove(last);
        } else if self.values.len() >= self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.order.insert(turn, name.to_owned());
        let entry = self.values.entry(name.to_owned());
        let (last, value) = entry.or_insert_with(|| (turn, make()));
        *last = turn;
        value
    }

    /// The newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let names = self.order.values().rev();
        names.filter_map(|name| self.get(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_recently_touched_goes_first() {
        let mut recent = LruTable::new(2);
        for name in ["a", "b", "a", "c"] {
            *recent.touch(name, || 0) += 1;
        }
        assert_eq!((recent.get("a"), recent.get("b")), (Some(&2), None));
        assert_eq!(recent.iter().copied().collect::<Vec<_>>(), [1, 2]);
    }

    proptest! {
        #[test]
        fn it_never_grows_and_keeps_the_newest(names in prop::collection::vec(0u8..20, 1..200)) {
            let mut recent = LruTable::new(5);
            for name in &names {
                recent.touch(&name.to_string(), || *name);
                prop_assert!(recent.values.len() <= 5);
                prop_assert_eq!(recent.order.len(), recent.values.len());
                prop_assert_eq!(recent.iter().next(), Some(name));
            }
            let mut expected: Vec<u8> = Vec::new();
            for name in names.iter().rev() {
                if expected.len() < 5 && !expected.contains(name) {
                    expected.push(*name);
                }
            }
            prop_assert_eq!(recent.iter().copied().collect::<Vec<_>>(), expected);
        }
    }
}
