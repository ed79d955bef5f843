//! A bounded table that evicts the least recently used entry: [`LruTable`].

use std::collections::{BTreeMap, HashMap};

/// Values by name, in the order of their last use.
#[derive(Clone, Debug)]
pub(crate) struct LruTable<T> {
    /// Values and the number of their last use.
    values: HashMap<String, (u64, T)>,
    /// Names by the number of their last use.
    order: BTreeMap<u64, String>,
    next_use: u64,
    capacity: usize,
}

impl<T> LruTable<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            values: HashMap::new(),
            order: BTreeMap::new(),
            next_use: 0,
            capacity: capacity.max(1),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.values.get(name).map(|(_, value)| value)
    }

    /// Returns the value of this name, inserted if it is missing, and marks it as the
    /// most recently used.
    pub(crate) fn touch(&mut self, name: &str, make: impl FnOnce() -> T) -> &mut T {
        let current = self.next_use;
        self.next_use += 1;
        if let Some((last, _)) = self.values.get(name) {
            self.order.remove(last);
        } else if self.values.len() >= self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.order.insert(current, name.to_owned());
        let entry = self.values.entry(name.to_owned());
        let (last, value) = entry.or_insert_with(|| (current, make()));
        *last = current;
        value
    }

    /// Iterates over the values, most recently used first.
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
    fn least_recently_used_entry_is_evicted() {
        let mut table = LruTable::new(2);
        for name in ["a", "b", "a", "c"] {
            *table.touch(name, || 0) += 1;
        }
        assert_eq!((table.get("a"), table.get("b")), (Some(&2), None));
        assert_eq!(table.iter().copied().collect::<Vec<_>>(), [1, 2]);
    }

    proptest! {
        #[test]
        fn table_is_bounded_and_keeps_the_newest(names in prop::collection::vec(0u8..20, 1..200)) {
            let mut table = LruTable::new(5);
            for name in &names {
                table.touch(&name.to_string(), || *name);
                prop_assert!(table.values.len() <= 5);
                prop_assert_eq!(table.order.len(), table.values.len());
                prop_assert_eq!(table.iter().next(), Some(name));
            }
            let mut expected: Vec<u8> = Vec::new();
            for name in names.iter().rev() {
                if expected.len() < 5 && !expected.contains(name) {
                    expected.push(*name);
                }
            }
            prop_assert_eq!(table.iter().copied().collect::<Vec<_>>(), expected);
        }
    }
}
