//! Rust source files with their comments and string literals separated from the code.

use std::ops::Range;

/// A part of a source file: its text and the byte offset where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) start: usize,
    pub(super) text: String,
}

/// A Rust source file.
#[derive(Debug)]
pub(super) struct Source {
    /// The path relative to the workspace, with `/` between its parts.
    pub(super) path: String,
    pub(super) text: String,
    /// The text with comments and the contents of literals replaced by spaces. Offsets are those of
    /// `text`.
    pub(super) code: String,
    /// The line comments, including doc comments, with their slashes.
    pub(super) comments: Vec<Fragment>,
    /// The contents of string literals.
    pub(super) strings: Vec<Fragment>,
    lines: Vec<usize>,
    tests: Vec<Range<usize>>,
}

impl Source {
    pub(super) fn parse(path: &str, text: &str) -> Self {
        let mut lexer = Lexer::new(text);
        lexer.run();
        let code = String::from_utf8(lexer.code).expect("only whole characters are replaced");
        let line_starts = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            tests: test_items(&code),
            code,
            comments: lexer.comments,
            strings: lexer.strings,
            lines: std::iter::once(0).chain(line_starts).collect(),
        }
    }

    /// Returns the line number of a byte offset, counted from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    /// Returns the text of a line by its number.
    pub(super) fn line_text(&self, number: usize) -> &str {
        self.text.lines().nth(number - 1).unwrap_or_default()
    }

    /// Returns whether the whole file is test code.
    pub(super) fn is_test_file(&self) -> bool {
        let is_folder = |name: &str| self.path.contains(&format!("/{name}/"));
        ["tests", "benches", "examples"].into_iter().any(is_folder)
            || self.path.ends_with("/tests.rs")
    }

    /// Returns whether the code at this offset belongs to tests.
    pub(super) fn is_test(&self, offset: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|range| range.contains(&offset))
    }

    /// Returns the offsets of `needle` in the code, only where it is not part of a longer name.
    pub(super) fn find<'s>(&'s self, needle: &'s str) -> impl Iterator<Item = usize> + 's {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let matches = self.code.match_indices(needle);
        matches.map(|(at, _)| at).filter(move |at| {
            let before = self.code[..*at].chars().next_back();
            let after = self.code[at + needle.len()..].chars().next();
            let continues = needle.ends_with(is_name) && after.is_some_and(is_name);
            !continues && !before.is_some_and(is_name)
        })
    }

    /// Returns the name and the range of each function with a body.
    pub(super) fn functions(&self) -> Vec<(&str, Range<usize>)> {
        let functions = self.find("fn ").filter_map(|start| {
            let name = name_at(&self.code, start + "fn ".len());
            let end = item_end(&self.code, start)?;
            let has_body = self.code[..end].ends_with('}');
            (!name.is_empty() && has_body).then_some((name, start..end))
        });
        functions.collect()
    }
}

/// Returns the name that starts at this offset; empty if there is none.
pub(super) fn name_at(code: &str, start: usize) -> &str {
    let rest = &code[start..];
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    &rest[..end]
}

/// Returns the offset after an item: after its `;` or its closing brace.
pub(super) fn item_end(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && byte == b'}' {
                    return Some(at + 1);
                }
            }
            b';' if depth == 0 => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Returns the ranges of the items with an attribute `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let attributes = ["#[cfg(test)]", "#[cfg(all(test,"];
    let starts = attributes
        .iter()
        .flat_map(|attribute| code.match_indices(attribute));
    starts
        .filter_map(|(start, _)| {
            let item = after_attributes(code, start);
            Some(start..item_end(code, item)?)
        })
        .collect()
}

/// Returns the offset of the code after white space and attributes.
pub(super) fn after_attributes(code: &str, mut start: usize) -> usize {
    loop {
        let rest = code[start..].trim_start();
        let offset = code.len() - rest.len();
        if !rest.starts_with("#[") {
            return offset;
        }
        let mut depth = 0_usize;
        let end = rest.bytes().position(|byte| {
            match byte {
                b'[' => depth += 1,
                b']' => depth -= 1,
                _ => {}
            }
            byte == b']' && depth == 0
        });
        match end {
            Some(end) => start = offset + end + 1,
            None => return code.len(),
        }
    }
}

/// Separates comments and literals from the code.
struct Lexer<'t> {
    text: &'t str,
    at: usize,
    code: Vec<u8>,
    comments: Vec<Fragment>,
    strings: Vec<Fragment>,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            code: text.as_bytes().to_vec(),
            comments: Vec::new(),
            strings: Vec::new(),
        }
    }

    fn run(&mut self) {
        while self.at < self.text.len() {
            let rest = &self.text[self.at..];
            if rest.starts_with("//") {
                self.line_comment(rest);
            } else if rest.starts_with("/*") {
                self.block_comment(rest);
            } else if let Some(hashes) = self.raw_string(rest) {
                self.raw(rest, hashes);
            } else if rest.starts_with('"') {
                self.string(rest);
            } else if let Some(length) = char_literal(rest) {
                self.mask(self.at..self.at + length);
                self.at += length;
            } else {
                self.at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
    }

    fn line_comment(&mut self, rest: &str) {
        let end = rest.find('\n').unwrap_or(rest.len());
        self.comments.push(Fragment {
            start: self.at,
            text: rest[..end].to_owned(),
        });
        self.mask(self.at..self.at + end);
        self.at += end;
    }

    fn block_comment(&mut self, rest: &str) {
        let (mut depth, mut end) = (0_usize, rest.len());
        for (at, pair) in rest.as_bytes().windows(2).enumerate() {
            match pair {
                b"/*" => depth += 1,
                b"*/" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = at + 2;
                break;
            }
        }
        self.mask(self.at..self.at + end);
        self.at += end;
    }

    /// Returns the number of hashes if a raw string starts here.
    fn raw_string(&self, rest: &str) -> Option<usize> {
        let before = self.text[..self.at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() && c != 'b' && c != 'c' || c == '_') {
            return None;
        }
        let rest = rest.strip_prefix('r')?;
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        rest[hashes..].starts_with('"').then_some(hashes)
    }

    fn raw(&mut self, rest: &str, hashes: usize) {
        let start = hashes + 2;
        let close = format!("\"{}", "#".repeat(hashes));
        let length = rest[start..].find(&close).unwrap_or(rest.len() - start);
        self.literal(rest, start, start + length, close.len());
    }

    fn string(&mut self, rest: &str) {
        let mut escaped = false;
        let length = rest[1..].bytes().position(|byte| {
            let is_end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            is_end
        });
        self.literal(rest, 1, length.map_or(rest.len(), |length| length + 1), 1);
    }

    fn literal(&mut self, rest: &str, start: usize, end: usize, close: usize) {
        self.strings.push(Fragment {
            start: self.at + start,
            text: rest[start..end].to_owned(),
        });
        self.mask(self.at + start..self.at + end);
        self.at = (self.at + end + close).min(self.text.len());
    }

    /// Replaces a part of the code by spaces; line ends stay.
    fn mask(&mut self, range: Range<usize>) {
        let part = self.code[range].iter_mut();
        part.filter(|byte| **byte != b'\n')
            .for_each(|byte| *byte = b' ');
    }
}

/// Returns the length of the character literal that starts here; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    let mut chars = inner.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        // At least one character follows the backslash, which may be a quote.
        let (after, _) = chars.nth(1)?;
        let end = inner[after..].find('\'')?;
        return Some(1 + after + end + 1);
    }
    let (close, quote) = chars.next()?;
    (quote == '\'').then_some(1 + close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "let a = \"x // \\\" y\"; // note\nlet b = r#\"\"raw\"\"#; /* b */ 'c'; '\\''; f::<'l>();";
        let source = Source::parse("a.rs", text);
        assert_eq!(source.comments[0].text, "// note");
        let strings: Vec<_> = source.strings.iter().map(|part| &*part.text).collect();
        assert_eq!(strings, ["x // \\\" y", "\"raw\""]);
        assert!(!source.code.contains("raw") && !source.code.contains("note"));
        assert!(source.code.contains("f::<'l>()"));
        assert_eq!(source.code.len(), text.len());
        assert_eq!(source.line(text.find("let b").unwrap()), 2);
    }

    #[test]
    fn test_items_are_recognized() {
        let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n";
        let source = Source::parse("src/a.rs", text);
        let is_test = |name: &str| source.is_test(text.find(name).unwrap());
        assert_eq!(
            [is_test("fn a"), is_test("fn b"), is_test("fn c")],
            [false, true, false]
        );
        assert!(Source::parse("celery/tests/it/a.rs", "").is_test_file());
    }

    #[test]
    fn functions_with_a_body_have_a_range() {
        let text =
            "trait T { fn declared(&self); }\nfn a(b: [u8; 2]) -> u8 {\n  match b { _ => 1 }\n}\n";
        let source = Source::parse("src/a.rs", text);
        let functions = source.functions();
        assert_eq!(functions.len(), 1);
        let (name, range) = &functions[0];
        assert_eq!(*name, "a");
        assert_eq!(
            (source.line(range.start), source.line(range.end - 1)),
            (2, 4)
        );
    }

    #[test]
    fn find_matches_whole_names_only() {
        let source = Source::parse(
            "src/a.rs",
            "Instant::now(); MyInstant::now(); Instant::nowhere()",
        );
        assert_eq!(source.find("Instant::now").count(), 1);
    }
}
