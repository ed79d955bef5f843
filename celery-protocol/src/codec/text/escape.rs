//! Finding the bytes of a text that JSON escapes.

/// The place of the first `"`, `\` or control character at or after `start`,
/// or the length of the text.
///
/// Looks at eight bytes at a time: most texts of a message are ids and names
/// without any.
#[inline]
pub(crate) fn first_special(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start..) {
        Some(rest) => start + special_within(rest),
        None => bytes.len(),
    }
}

/// A function of its own keeps its constants out of the registers of callers.
#[inline(never)]
fn special_within(bytes: &[u8]) -> usize {
    let (words, last) = bytes.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let found = special_bytes(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + first_special_of_last(last)
}

/// Apart, because hardly a text ends this close to the end of a message.
#[cold]
fn first_special_of_last(last: &[u8]) -> usize {
    let found = last.iter().position(|byte| is_special(*byte));
    found.unwrap_or(last.len())
}

#[inline]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Sets the high bit of each byte that is special. A borrow can set it in
/// later bytes too, so only the first one counts.
#[inline]
fn special_bytes(word: u64) -> u64 {
    // This swaps `"` with the space, the byte after the control characters, so
    // that one comparison finds them all. None of it sets a high bit.
    let low = (word ^ each(b'"' ^ b' ')).wrapping_sub(each(0x21));
    let backslashes = (word ^ each(b'\\')).wrapping_sub(each(1));
    (low | backslashes) & !word & each(0x80)
}

const fn each(byte: u8) -> u64 {
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
