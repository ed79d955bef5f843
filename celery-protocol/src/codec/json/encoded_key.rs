//! Keys that are known before they are read.

/// A key as JSON has it before the value, with quotes and colon.
///
/// It is kept in whole words too: comparing those takes a few instructions
/// where comparing slices takes a call, and a message has some thirty keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedKey {
    text: &'static str,
    words: [u64; WORD_COUNT],
    /// The bits of the words that count.
    masks: [u64; WORD_COUNT],
}

/// Enough for the longest name, `replaced_task_nesting`.
const WORD_COUNT: usize = 3;

const MAX_LENGTH: usize = WORD_COUNT * size_of::<u64>();

/// A quote before the name; a quote and a colon after it.
const PREFIX_LENGTH: usize = 1;
const SUFFIX_LENGTH: usize = 2;

impl EncodedKey {
    /// The key of this key, which must fit the words.
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

    /// The key with quotes and colon.
    #[inline]
    pub(crate) fn text(&self) -> &'static str {
        self.text
    }

    /// The key itself.
    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        &self.text[PREFIX_LENGTH..self.text.len() - SUFFIX_LENGTH]
    }

    /// Whether this is the key of that name.
    #[inline]
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.text.len() == name.len() + PREFIX_LENGTH + SUFFIX_LENGTH && self.name() == name
    }

    /// Whether the bytes begin like this.
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
    fn words_compare_as_the_text_does() {
        for text in [
            "\"id\":",
            "\"delivery_info\":",
            "\"replaced_task_nesting\":",
        ] {
            let key = EncodedKey::new(text);
            assert!(key.is_prefix_of(text.as_bytes()), "{text}");
            assert!(key.has_name(&text[1..text.len() - 2]), "{text}");
            for place in 0..text.len() {
                let mut found = format!("{text} and what comes after it").into_bytes();
                assert!(key.is_prefix_of(&found), "{text}");
                found[place] ^= 1;
                assert!(!key.is_prefix_of(&found), "{text} at {place}");
                assert!(
                    !key.is_prefix_of(&text.as_bytes()[..place]),
                    "{text} to {place}"
                );
            }
        }
    }
}
