//! Keys of maps that are known at compile time.

/// A map key in its JSON form before the value, with quotes and colon.
///
/// The key is also stored in 64-bit words: comparing words takes a few
/// instructions, comparing slices takes a function call, and a message has
/// about thirty keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedKey {
    text: &'static str,
    words: [u64; WORD_COUNT],
    /// The bits of the words that belong to the key.
    masks: [u64; WORD_COUNT],
}

/// The number of words, enough for the longest name: `replaced_task_nesting`.
const WORD_COUNT: usize = 3;

/// The maximum length of the JSON form.
const MAX_LENGTH: usize = WORD_COUNT * size_of::<u64>();

/// The length of the quote before the name.
const PREFIX_LENGTH: usize = 1;

/// The length of the quote and the colon after the name.
const SUFFIX_LENGTH: usize = 2;

impl EncodedKey {
    /// Creates a key from its JSON form, with quotes and colon. Panics if it
    /// does not fit into the words.
    pub(crate) const fn new(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        assert!(bytes.len() <= MAX_LENGTH, "the name is too long");
        let mut words = [0; WORD_COUNT];
        let mut masks = [0; WORD_COUNT];
        let mut at = 0;
        while at < bytes.len() {
            let shift = at % 8 * 8;
            words[at / 8] |= (bytes[at] as u64) << shift;
            masks[at / 8] |= 0xff << shift;
            at += 1;
        }
        Self { text, words, masks }
    }

    /// Returns the JSON form, with quotes and colon.
    #[inline]
    pub(crate) fn text(&self) -> &'static str {
        self.text
    }

    /// Returns the name without quotes and colon.
    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        &self.text[PREFIX_LENGTH..self.text.len() - SUFFIX_LENGTH]
    }

    /// Returns whether this is the key with the given name.
    #[inline]
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.text.len() == name.len() + PREFIX_LENGTH + SUFFIX_LENGTH && self.name() == name
    }

    /// Returns whether the bytes begin with the JSON form of this key.
    #[inline]
    pub(super) fn is_prefix_of(&self, bytes: &[u8]) -> bool {
        let Some(start) = bytes.first_chunk::<MAX_LENGTH>() else {
            return bytes.starts_with(self.text.as_bytes());
        };
        let (found, _) = start.as_chunks();
        let differences = found
            .iter()
            .zip(&self.words)
            .zip(&self.masks)
            .map(|((found, word), mask)| (u64::from_le_bytes(*found) ^ word) & mask);
        differences.fold(0, |all, difference| all | difference) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_comparison_agrees_with_text_comparison() {
        for text in [
            "\"id\":",
            "\"delivery_info\":",
            "\"replaced_task_nesting\":",
        ] {
            let key = EncodedKey::new(text);
            assert!(key.is_prefix_of(text.as_bytes()), "{text}");
            assert!(key.has_name(&text[1..text.len() - 2]), "{text}");
            for position in 0..text.len() {
                let mut found = format!("{text} and more text").into_bytes();
                assert!(key.is_prefix_of(&found), "{text}");
                found[position] ^= 1;
                assert!(!key.is_prefix_of(&found), "{text} at {position}");
                assert!(
                    !key.is_prefix_of(&text.as_bytes()[..position]),
                    "{text} to {position}"
                );
            }
        }
    }
}
