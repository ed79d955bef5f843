//! Python representations of arguments, for the headers `argsrepr` and
//! `kwargsrepr`, which monitors display.

use serde::Serialize;

use crate::codec::text::{Dialect, TextWriter, append};
use crate::value::ExtendedKind;

/// The maximum length of a representation in bytes.
const MAX_LENGTH: usize = 1024;

/// The maximum nesting depth that is shown: Celery's `task_repr_maxlevels`.
const MAX_LEVELS: usize = 3;

const ELLIPSIS: &str = "...";

/// Returns positional arguments as Python prints them: a tuple as `(2, 3)`, a
/// list as `[2, 3]`.
///
/// Parts deeper than three levels and text after 1,024 bytes are replaced by
/// `...`. Arguments that cannot be serialized give `(...)`.
///
/// ```
/// use celery_protocol::repr;
///
/// assert_eq!(repr::args(&(2, "it's", None::<i64>)), r#"(2, "it's", None)"#);
/// assert_eq!(repr::args(&(1.5,)), "(1.5,)");
/// assert_eq!(repr::args(&()), "()");
/// ```
pub fn args<A: Serialize + ?Sized>(args: &A) -> String {
    match repr(args) {
        Some(text) if text == "None" => "()".to_owned(),
        Some(text) => text,
        None => format!("({ELLIPSIS})"),
    }
}

/// Returns keyword arguments as Python prints a `dict`: `{'y': 2}`.
///
/// The limits of [`args`] apply. Arguments that cannot be serialized give
/// `{...}`.
pub fn kwargs<K: Serialize + ?Sized>(kwargs: &K) -> String {
    match repr(kwargs) {
        Some(text) if text == "None" => "{}".to_owned(),
        Some(text) => text,
        None => format!("{{{ELLIPSIS}}}"),
    }
}

fn repr<T: Serialize + ?Sized>(value: &T) -> Option<String> {
    let mut out = Vec::with_capacity(64);
    value
        .serialize(&mut TextWriter::new(&mut out, PythonRepr { level: 0 }))
        .ok()?;
    Some(truncated(String::from_utf8(out).ok()?))
}

/// Shortens a text to at most [`MAX_LENGTH`] bytes, at a character boundary.
fn truncated(mut text: String) -> String {
    if text.len() > MAX_LENGTH {
        let mut end = MAX_LENGTH - ELLIPSIS.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    text
}

/// Python's `repr` with the limits of Celery's `saferepr`.
struct PythonRepr {
    /// The number of open containers.
    level: usize,
}

impl Dialect for PythonRepr {
    const COMMA: &'static [u8] = b", ";
    const COLON: &'static [u8] = b": ";
    const TUPLE: [u8; 2] = *b"()";
    const NULL: &'static [u8] = b"None";
    const TRUE: &'static [u8] = b"True";
    const FALSE: &'static [u8] = b"False";
    const TEXT_KEYS: bool = false;

    /// Writes a float as Python prints it: the exponent has a sign and at least
    /// two digits.
    fn float(&self, out: &mut Vec<u8>, digits: &str) {
        let Some((mantissa, exponent)) = digits.split_once('e') else {
            return out.extend_from_slice(digits.as_bytes());
        };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        append(out, format_args!("{mantissa}e{sign}{exponent:0>2}"));
    }

    fn non_finite_float(&self, out: &mut Vec<u8>, value: f64) {
        out.extend_from_slice(if value.is_nan() { b"nan" } else { b"inf" });
    }

    fn string(&self, out: &mut Vec<u8>, text: &str) {
        let quote = if text.contains('\'') && !text.contains('"') {
            '"'
        } else {
            '\''
        };
        append(out, format_args!("{quote}"));
        for character in text.chars() {
            // The rest of a long text is cut off.
            if self.is_full(out) {
                break;
            }
            match character {
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\\' => out.extend_from_slice(b"\\\\"),
                _ if character == quote => append(out, format_args!("\\{quote}")),
                _ if is_printable(character) => append(out, format_args!("{character}")),
                _ if character <= '\u{ff}' => {
                    append(out, format_args!("\\x{:02x}", u32::from(character)));
                }
                _ => append(out, format_args!("\\u{:04x}", u32::from(character))),
            }
        }
        append(out, format_args!("{quote}"));
    }

    fn bytes(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(b"b'");
        for &byte in bytes {
            if self.is_full(out) {
                break;
            }
            match byte {
                b'\'' => out.extend_from_slice(b"\\'"),
                b'"' => out.push(b'"'),
                b'\n' | b'\r' | b'\t' | b'\\' | b' '..=b'~' => {
                    append(out, format_args!("{}", byte.escape_ascii()));
                }
                _ => append(out, format_args!("\\x{byte:02x}")),
            }
        }
        out.push(b'\'');
    }

    fn extended(&self, out: &mut Vec<u8>, kind: ExtendedKind, text: &str) {
        match kind {
            ExtendedKind::Decimal => {
                out.extend_from_slice(b"Decimal(");
                self.string(out, text);
                out.push(b')');
            }
            ExtendedKind::Uuid if text.len() == 32 && text.is_ascii() => append(
                out,
                format_args!(
                    "UUID('{}-{}-{}-{}-{}')",
                    &text[..8],
                    &text[8..12],
                    &text[12..16],
                    &text[16..20],
                    &text[20..]
                ),
            ),
            _ => self.string(out, text),
        }
    }

    fn enter(&mut self) -> bool {
        self.level += 1;
        self.level <= MAX_LEVELS
    }

    fn leave(&mut self) {
        self.level -= 1;
    }

    fn is_full(&self, out: &[u8]) -> bool {
        out.len() > MAX_LENGTH
    }
}

/// Returns whether a character is printable: an approximation of Python's
/// `str.isprintable` without its tables.
fn is_printable(character: char) -> bool {
    character == ' ' || !(character.is_control() || character.is_whitespace())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::value::{Extended, Map, Value};

    #[test]
    fn arguments_are_printed_as_tuples_and_lists() {
        assert_eq!(args(&(2, 3)), "(2, 3)");
        assert_eq!(args(&(2,)), "(2,)");
        assert_eq!(args(&()), "()");
        assert_eq!(args(&vec![1, 2]), "[1, 2]");
        assert_eq!(kwargs(&()), "{}");
        assert_eq!(
            kwargs(&BTreeMap::from([("y", 2), ("z", 3)])),
            "{'y': 2, 'z': 3}"
        );
    }

    #[test]
    fn scalars_are_printed_as_python_does() {
        let value = Value::Array(vec![
            Value::Null,
            true.into(),
            1e16.into(),
            1.5e-7.into(),
            f64::NAN.into(),
            f64::NEG_INFINITY.into(),
            "it's \"x\"\n\u{e9}\u{1}".into(),
            Value::Bytes(b"a'\xff\0".to_vec()),
            Extended::decimal("1.10").into(),
            Extended::uuid("12345678123442348234123456789abc").into(),
        ]);
        assert_eq!(
            args(&value),
            "[None, True, 1e+16, 1.5e-07, nan, -inf, 'it\\'s \"x\"\\n\u{e9}\\x01', \
             b'a\\'\\xff\\x00', Decimal('1.10'), \
             UUID('12345678-1234-4234-8234-123456789abc')]"
        );
    }

    #[test]
    fn number_keys_are_printed_without_quotes() {
        let map: Map = [(Value::Int(1), Value::Null), ("a".into(), 2.into())]
            .into_iter()
            .collect();
        assert_eq!(kwargs(&map), "{1: None, 'a': 2}");
    }

    #[test]
    fn levels_beyond_three_are_abbreviated() {
        assert_eq!(args(&(((1,),),)), "(((1,),),)");
        assert_eq!(args(&((((1, 2),),),)), "((((...),),),)");
        assert_eq!(args(&vec![vec![vec![vec![1]]]]), "[[[[...]]]]");
    }

    #[test]
    fn long_representation_is_cut_between_characters() {
        let text = args(&("\u{e9}".repeat(5000),));
        assert!(
            text.len() <= MAX_LENGTH && text.len() > MAX_LENGTH - 8,
            "{}",
            text.len()
        );
        assert!(text.starts_with("('\u{e9}") && text.ends_with("\u{e9}..."));
        let many = args(&vec![7; 100_000]);
        assert!(many.len() <= MAX_LENGTH && many.ends_with("..."));
    }

    #[test]
    fn unserializable_arguments_are_abbreviated() {
        let bad: BTreeMap<Vec<u8>, u8> = [(vec![1], 1)].into();
        assert_eq!(kwargs(&bad), "{...}");
        assert_eq!(args(&bad), "(...)");
    }
}
