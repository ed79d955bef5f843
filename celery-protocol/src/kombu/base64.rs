//! The base64 encoding of bodies in envelopes.

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeSliceError, Engine as _, alphabet};

/// Python writes padding and does not require it when reading.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Encodes bytes and appends the text to `out`.
pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = ENGINE.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
}

/// Decodes a text into a vector of exactly the required size.
///
/// The library is optimised for long texts, and most bodies are short, so
/// groups of four digits are decoded here with a lookup table. The library
/// decodes the last group, with its padding, and every text that has an error.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, DecodeSliceError> {
    let digits = text.trim_end_matches('=').len();
    let mut bytes = vec![0; digits / 4 * 3 + digits % 4 * 3 / 4];
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    let groups = match groups {
        [groups @ .., _last] if rest.is_empty() => groups,
        _ => groups,
    };
    let last = &text.as_bytes()[groups.len() * 4..];
    let (whole, end) = bytes.split_at_mut((groups.len() * 3).min(digits / 4 * 3));
    let (threes, _) = whole.as_chunks_mut::<3>();
    if threes.len() == groups.len()
        && decode_groups(groups, threes)
        && let Ok(length) = ENGINE.decode_slice(last, end)
    {
        bytes.truncate(groups.len() * 3 + length);
        return Ok(bytes);
    }
    let length = ENGINE.decode_slice(text, &mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Decodes groups of four digits, and returns whether all bytes were digits.
fn decode_groups(groups: &[[u8; 4]], out: &mut [[u8; 3]]) -> bool {
    let mut seen = 0;
    for (&[a, b, c, d], out) in groups.iter().zip(out) {
        let group = DIGITS[0][usize::from(a)]
            | DIGITS[1][usize::from(b)]
            | DIGITS[2][usize::from(c)]
            | DIGITS[3][usize::from(d)];
        seen |= group;
        let [_, first, second, third] = group.to_be_bytes();
        *out = [first, second, third];
    }
    seen & NO_DIGIT == 0
}

/// The bit that the table sets for a byte that is not a digit.
const NO_DIGIT: u32 = 1 << 31;

/// The value of each byte at each position of a group.
static DIGITS: [[u32; 256]; 4] = digits();

const fn digits() -> [[u32; 256]; 4] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut digits = [[NO_DIGIT; 256]; 4];
    let mut value = 0;
    while value < ALPHABET.len() {
        let mut position = 0;
        while position < digits.len() {
            digits[position][ALPHABET[value] as usize] = (value as u32) << (18 - 6 * position);
            position += 1;
        }
        value += 1;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes with the library only.
    fn by_library(text: &str) -> Result<Vec<u8>, String> {
        let digits = text.trim_end_matches('=').len();
        let mut bytes = vec![0; digits / 4 * 3 + digits % 4 * 3 / 4];
        let length = ENGINE.decode_slice(text, &mut bytes);
        let length = length.map_err(|error| error.to_string())?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn by_this_module(text: &str) -> Result<Vec<u8>, String> {
        decode(text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_length_is_decoded_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..bytes.len() {
            let mut text = Vec::new();
            encode(&bytes[..length], &mut text);
            let text = String::from_utf8(text).unwrap();
            assert_eq!(by_this_module(&text).unwrap(), &bytes[..length]);
            assert_eq!(
                by_this_module(text.trim_end_matches('=')).unwrap(),
                &bytes[..length]
            );
        }
    }

    #[test]
    fn malformed_text_gives_the_error_of_the_library() {
        let good = "QUJDREVGR0hJSktM";
        for byte in (0..128).map(char::from) {
            for position in 0..=good.len() {
                let mut text = good.to_owned();
                text.insert(position, byte);
                assert_eq!(by_this_module(&text), by_library(&text), "{text}");
                text.remove(position + usize::from(position < good.len()));
                assert_eq!(by_this_module(&text), by_library(&text), "{text}");
            }
        }
        for text in [
            "", "=", "==", "A", "A=", "AA=A", "QQ==QQ==", "QQ======", "QUJD=", "QUJD====",
        ] {
            assert_eq!(by_this_module(text), by_library(text), "{text}");
        }
    }
}
