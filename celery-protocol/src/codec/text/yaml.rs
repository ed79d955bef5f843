//! The flow style of YAML, as PyYAML reads it.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;

use super::json::escaped;
use super::{Dialect, append};
use crate::value::ExtendedKind;

/// YAML 1.1 on one line. Strings are always quoted, so that none is read as a
/// number, a date or a boolean.
pub(crate) struct Yaml;

impl Dialect for Yaml {
    const COMMA: &'static [u8] = b", ";
    const COLON: &'static [u8] = b": ";
    const TEXT_KEYS: bool = false;

    /// PyYAML reads `1e16` as a string, so a float is written with a dot, and
    /// its exponent with a sign.
    fn float(&self, out: &mut Vec<u8>, digits: &str) {
        let (mantissa, exponent) = match digits.split_once('e') {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (digits, None),
        };
        out.extend_from_slice(mantissa.as_bytes());
        if !mantissa.contains('.') {
            out.extend_from_slice(b".0");
        }
        if let Some(exponent) = exponent {
            let sign: &[u8] = if exponent.starts_with('-') {
                b"e"
            } else {
                b"e+"
            };
            out.extend_from_slice(sign);
            out.extend_from_slice(exponent.as_bytes());
        }
    }

    fn non_finite_float(&self, out: &mut Vec<u8>, value: f64) {
        out.extend_from_slice(if value.is_nan() { b".nan" } else { b".inf" });
    }

    fn string(&self, out: &mut Vec<u8>, text: &str) {
        out.push(b'"');
        let mut written = 0;
        for (at, character) in text.char_indices().filter(|(_, c)| !is_printable(*c)) {
            escaped(out, &text[written..at]);
            // All of these characters are in the Basic Multilingual Plane.
            append(out, format_args!("\\u{:04x}", u32::from(character)));
            written = at + character.len_utf8();
        }
        escaped(out, &text[written..]);
        out.push(b'"');
    }

    fn bytes(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        append(
            out,
            format_args!("!!binary \"{}\"", Base64Display::new(bytes, &STANDARD)),
        );
    }

    fn extended(&self, out: &mut Vec<u8>, _kind: ExtendedKind, text: &str) {
        self.string(out, text);
    }

    /// Marks a long key with a question mark. Without it, parsers search for
    /// the colon of a key only within a limited length.
    fn end_key(&self, out: &mut Vec<u8>, start: usize) {
        if out.len() - start > MAX_SIMPLE_KEY_LENGTH {
            out.splice(start..start, *b"? ");
        }
    }
}

/// The maximum length of a key without question mark. YAML counts characters;
/// counting bytes is stricter.
const MAX_SIMPLE_KEY_LENGTH: usize = 1024;

/// Returns whether a character may be written in a quoted string literally or
/// with a JSON escape. PyYAML rejects characters that it considers not
/// printable, and folds lines at Unicode line separators.
fn is_printable(character: char) -> bool {
    !matches!(
        character,
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}
