//! Search for the bytes of a text that JSON escapes.

/// Returns the position of the first `"`, `\` or control character at or after
/// `start`, or the length of the text.
///
/// The search compares eight bytes at a time: most texts in a message are ids
/// and names without such bytes.
#[inline]
pub(crate) fn first_special(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start..) {
        Some(rest) => start + find_special(rest),
        None => bytes.len(),
    }
}

/// Returns the position of the first special byte, or the length. The function
/// is not inlined, so that its constants do not occupy registers of the
/// callers.
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

/// Searches the last, incomplete word. The function is cold, because few texts
/// end this close to the end of a message.
#[cold]
fn find_special_in_tail(last: &[u8]) -> usize {
    let found = last.iter().position(|byte| is_special(*byte));
    found.unwrap_or(last.len())
}

/// Returns whether JSON escapes the byte.
#[inline]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns a word in which the high bit of the first special byte is set. A
/// borrow can also set the bit in later bytes, so only the lowest set bit is
/// meaningful.
#[inline]
fn special_bytes(word: u64) -> u64 {
    // The XOR swaps `"` with the space, the byte after the control characters,
    // so that one comparison finds both. It never sets a high bit.
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
    fn special_byte_is_found_at_each_position() {
        for length in 0..20 {
            for position in 0..length {
                for byte in 0..=255 {
                    let mut text = vec![b'a'; length];
                    text[position] = byte;
                    let expected = if is_special(byte) { position } else { length };
                    assert_eq!(first_special(&text, 0), expected, "{byte} at {position}");
                }
            }
        }
    }

    #[test]
    fn search_begins_at_start_position() {
        assert_eq!(first_special(b"\"aaaaaaaaaaaa\"", 1), 13);
        assert_eq!(first_special(b"abc", 3), 3);
        assert_eq!(first_special(&[0xff; 9], 0), 9);
    }
}
