//! Finding the bytes of a text that JSON escapes.

/// The place of the first `"`, `\` or control character at or after `start`,
/// or the length of the text.
///
/// Looks at eight bytes at a time: most texts of a message are ids and names
/// without any.
#[inline]
pub(crate) fn first_special(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start..) {
        Some(rest) => start + find_special(rest),
        None => bytes.len(),
    }
}

/// A function of its own keeps its constants out of the registers of callers.
#[inline(never)]
fn find_special(bytes: &[u8]) -> usize {
    let (words, last) = bytes.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let found = special_bytes(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + find_special_in_tail(last)
}

/// Apart, because hardly a text ends this close to the end of a message.
#[cold]
fn find_special_in_tail(last: &[u8]) -> usize {
    let found = last.iter().position(|byte| is_special(*byte));
    found.unwrap_or(last.len())
}

#[inline]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Sets the high bit of repeated byte that is special. A borrow can set it in
/// later bytes too, so only the first one counts.
#[inline]
fn special_bytes(word: u64) -> u64 {
    // This swaps `"` with the space, the byte after the control characters, so
    // that one comparison finds them all. None of it sets a high bit.
    let low = (word ^ repeated(b'"' ^ b' ')).wrapping_sub(repeated(0x21));
    let backslashes = (word ^ repeated(b'\\')).wrapping_sub(repeated(1));
    (low | backslashes) & !word & repeated(0x80)
}

const fn repeated(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_byte_at_each_place() {
        for length in 0..20 {
            for place in 0..length {
                for byte in 0..=255 {
                    let mut text = vec![b'a'; length];
                    text[place] = byte;
                    let expected = if is_special(byte) { place } else { length };
                    assert_eq!(first_special(&text, 0), expected, "{byte} at {place}");
                }
            }
        }
    }

    #[test]
    fn begins_where_told() {
        assert_eq!(first_special(b"\"aaaaaaaaaaaa\"", 1), 13);
        assert_eq!(first_special(b"abc", 3), 3);
        assert_eq!(first_special(&[0xff; 9], 0), 9);
    }
}
