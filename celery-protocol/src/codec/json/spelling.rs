//! Keys that are known before they are read.

/// A key as JSON has it before the value, with quotes and colon.
///
/// It is kept in whole words too: comparing those takes a few instructions
/// where comparing slices takes a call, and a message has some thirty keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    text: &'static str,
    words: [u64; WORDS],
    /// The bits of the words that count.
    masks: [u64; WORDS],
}

/// Enough for the longest name, `replaced_task_nesting`.
const WORDS: usize = 3;

const SIZE: usize = WORDS * size_of::<u64>();

/// A quote before the name; a quote and a colon after it.
const BEFORE: usize = 1;
const AFTER: usize = 2;

impl Spelling {
    /// The key of this spelling, which must fit the words.
    pub(crate) const fn new(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        assert!(bytes.len() <= SIZE, "the name is too long");
        let mut words = [0; WORDS];
        let mut masks = [0; WORDS];
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
        &self.text[BEFORE..self.text.len() - AFTER]
    }

    /// Whether this is the key of that name.
    #[inline]
    pub(crate) fn is(&self, name: &str) -> bool {
        self.text.len() == name.len() + BEFORE + AFTER && self.name() == name
    }

    /// Whether the bytes begin like this.
    #[inline]
    pub(super) fn begins(&self, bytes: &[u8]) -> bool {
        let Some(start) = bytes.first_chunk::<SIZE>() else {
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
            let spelling = Spelling::new(text);
            assert!(spelling.begins(text.as_bytes()), "{text}");
            assert!(spelling.is(&text[1..text.len() - 2]), "{text}");
            for place in 0..text.len() {
                let mut found = format!("{text} and what comes after it").into_bytes();
                assert!(spelling.begins(&found), "{text}");
                found[place] ^= 1;
                assert!(!spelling.begins(&found), "{text} at {place}");
                assert!(
                    !spelling.begins(&text.as_bytes()[..place]),
                    "{text} to {place}"
                );
            }
        }
    }
}
