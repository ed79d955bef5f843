//! A mapping that preserves the order of insertion and accepts keys of any
//! type.

use std::collections::HashMap;
use std::{slice, vec};

use super::Value;

/// A mapping in the order of insertion, whose keys may be of any type.
///
/// A lookup compares the keys one after the other, because the mappings of
/// messages are small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Map {
    entries: Vec<(Value, Value)>,
}

impl Map {
    /// Creates an empty mapping.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the mapping has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the value under a text key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (_, value) = self.entries.iter().find(|(k, _)| k.as_str() == Some(key))?;
        Some(value)
    }

    /// Returns a mutable reference to the value under a text key.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let mut entries = self.entries.iter_mut();
        let (_, value) = entries.find(|(k, _)| k.as_str() == Some(key))?;
        Some(value)
    }

    /// Returns whether there is an entry under a text key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Sets the value of a key and returns the previous value. An existing key
    /// keeps its position.
    pub fn insert(&mut self, key: impl Into<Value>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                self.entries.push((key, value));
                None
            }
        }
    }

    /// Removes the entry with a text key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let position = self
            .entries
            .iter()
            .position(|(k, _)| k.as_str() == Some(key))?;
        Some(self.entries.remove(position).1)
    }

    /// Returns the entries in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            entries: self.entries.iter(),
        }
    }

    /// Returns the keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &Value> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// Returns the entries as mutable references.
    #[cfg(feature = "yaml")]
    pub(crate) fn entries_mut(&mut self) -> slice::IterMut<'_, (Value, Value)> {
        self.entries.iter_mut()
    }

    /// Creates a mapping that may have equal keys until
    /// [`remove_duplicates`](Self::remove_duplicates) is called.
    #[cfg(feature = "yaml")]
    pub(crate) fn with_duplicates(entries: Vec<(Value, Value)>) -> Self {
        Self { entries }
    }

    /// Keeps only the last of equal keys.
    #[cfg(feature = "yaml")]
    pub(crate) fn remove_duplicates(&mut self) {
        *self = Self::from_entries(std::mem::take(&mut self.entries));
    }

    /// Creates a mapping from entries in the order of a message. The last of
    /// equal keys wins, as in Python.
    pub(crate) fn from_entries(entries: Vec<(Value, Value)>) -> Self {
        if entries.len() <= MAX_LINEAR_ENTRIES {
            return entries.into_iter().collect();
        }
        Self {
            entries: without_duplicates(entries),
        }
    }
}

impl<K: Into<Value>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut map = Self::with_capacity(entries.size_hint().0);
        map.extend(entries);
        map
    }
}

impl<K: Into<Value>, V: Into<Value>, const N: usize> From<[(K, V); N]> for Map {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Into<Value>, V: Into<Value>> Extend<(K, V)> for Map {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl IntoIterator for Map {
    type Item = (Value, Value);
    type IntoIter = vec::IntoIter<(Value, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Value, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Iterator over the entries of a [`Map`] in order.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    entries: slice::Iter<'a, (Value, Value)>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Value, &'a Value);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.entries.next()?;
        Some((key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// The number of entries up to which comparing all keys is faster than hashing
/// them.
const MAX_LINEAR_ENTRIES: usize = 16;

/// Removes duplicate keys: the position of the first and the value of the last
/// of equal keys remain. The keys are hashed, so that a malicious mapping does
/// not take quadratic time. The hash map is only used for lookups, so its order
/// has no influence.
fn without_duplicates(entries: Vec<(Value, Value)>) -> Vec<(Value, Value)> {
    let mut first = HashMap::with_capacity(entries.len());
    let positions: Vec<usize> = entries
        .iter()
        .enumerate()
        .map(|(position, (key, _))| *first.entry(key).or_insert(position))
        .collect();
    if first.len() == entries.len() {
        return entries;
    }
    let mut kept: Vec<Option<(Value, Value)>> = Vec::with_capacity(entries.len());
    for ((key, value), position) in entries.into_iter().zip(positions) {
        if let Some(Some(entry)) = kept.get_mut(position) {
            entry.1 = value;
            kept.push(None);
        } else {
            kept.push(Some((key, value)));
        }
    }
    kept.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_of_equal_keys_wins_in_first_position() {
        for padding in [0, 40] {
            let mut entries: Vec<(Value, Value)> = vec![
                ("a".into(), 1.into()),
                ("b".into(), 2.into()),
                ("a".into(), 3.into()),
                (1.into(), 4.into()),
            ];
            entries.extend((100..100 + padding).map(|i| (i.into(), i.into())));
            let map = Map::from_entries(entries);
            assert_eq!(map.len(), 3 + padding as usize);
            assert_eq!(map.get("a"), Some(&Value::Int(3)));
            let keys: Vec<_> = map.keys().take(3).cloned().collect();
            assert_eq!(keys, ["a".into(), "b".into(), Value::Int(1)]);
        }
    }

    #[test]
    fn entries_are_inserted_and_removed_by_text_key() {
        let mut map = Map::new();
        assert_eq!(map.insert("x", 1), None);
        assert_eq!(map.insert("x", 2), Some(Value::Int(1)));
        assert_eq!(map.remove("x"), Some(Value::Int(2)));
        assert!(map.is_empty() && !map.contains_key("x"));
    }
}
