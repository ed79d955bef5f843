//! The JSON dialect.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;

use super::escape::first_special;
use super::{Dialect, append};
use crate::value::ExtendedKind;

/// JSON with kombu's typed values, without spaces, with non-ASCII characters as
/// UTF-8.
pub(crate) struct Json;

impl Dialect for Json {
    const COMMA: &'static [u8] = b",";
    const COLON: &'static [u8] = b":";
    const TEXT_KEYS: bool = true;

    fn float(&self, out: &mut Vec<u8>, digits: &str) {
        out.extend_from_slice(digits.as_bytes());
    }

    fn non_finite_float(&self, out: &mut Vec<u8>, value: f64) {
        // This is not JSON, but Python's `json` writes and reads it.
        out.extend_from_slice(if value.is_nan() { b"NaN" } else { b"Infinity" });
    }

    #[inline]
    fn string(&self, out: &mut Vec<u8>, text: &str) {
        out.push(b'"');
        escaped(out, text);
        out.push(b'"');
    }

    fn bytes(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            out.extend_from_slice(br#"{"__type__":"bytes","__value__":"#);
            self.string(out, text);
        } else {
            out.extend_from_slice(br#"{"__type__":"base64","__value__":""#);
            append(
                out,
                format_args!("{}", Base64Display::new(bytes, &STANDARD)),
            );
            out.push(b'"');
        }
        out.push(b'}');
    }

    fn extended(&self, out: &mut Vec<u8>, kind: ExtendedKind, text: &str) {
        out.extend_from_slice(br#"{"__type__":""#);
        out.extend_from_slice(kind.name().as_bytes());
        out.extend_from_slice(br#"","__value__":"#);
        // kombu writes the arguments of Python's `UUID`.
        let uuid = kind == ExtendedKind::Uuid;
        if uuid {
            out.extend_from_slice(br#"{"hex":"#);
        }
        self.string(out, text);
        out.extend_from_slice(if uuid { b"}}" } else { b"}" });
    }

    #[inline]
    fn splice_json(&self, out: &mut Vec<u8>, text: &str) -> bool {
        out.extend_from_slice(text.as_bytes());
        true
    }
}

/// Writes a text with JSON escapes, without quotes.
#[inline]
pub(super) fn escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut written = 0;
    loop {
        let at = first_special(bytes, written);
        out.extend_from_slice(&bytes[written..at]);
        let Some(&byte) = bytes.get(at) else {
            return;
        };
        escape(out, byte);
        written = at + 1;
    }
}

/// Writes one ASCII byte as an escape.
#[cold]
pub(super) fn escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}
