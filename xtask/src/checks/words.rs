//! The wording of comments, errors, logs, test names and documents.
//!
//! Texts name components by their technical terms. [`FORBIDDEN`] lists phrases that hide which
//! component acts, and metaphors without a technical meaning.

use super::source::{Fragment, Source, after_attributes, item_end, name_at};
use super::{Exception, Problem, files, is_allowed, report};
use crate::shell::Outcome;

/// The forbidden phrases in lower case.
const FORBIDDEN: &[&str] = &[
    "who",
    "whoever",
    "whom",
    "whomever",
    "somebody",
    "someone",
    "nobody",
    "anybody",
    "goes on",
    "going on with",
    "go on with",
    "gone on",
    "is told",
    "are told",
    "was told",
    "were told",
    "lets go",
    "let go",
    "herald",
    "ears",
    "deed",
    "deeds",
    "doom",
    "doomed",
    "mishap",
    "mishaps",
    "patience",
    "letter",
    "letters",
    "desk",
    "carrier",
    "tally",
    "left behind",
    "in its turn",
    "in their turn",
    "bears",
    "as if nothing had happened",
];

/// Phrases that are allowed next to certain words: the phrase, the words, and the reason.
const CONTEXTS: &[(&str, &[&str], &str)] = &[
    ("letter", &["dead"], "a dead letter is a term of RabbitMQ"),
    ("letters", &["dead"], "a dead letter is a term of RabbitMQ"),
    (
        "letters",
        &["ascii", "case", "digits", "lower", "upper"],
        "the letters of the alphabet",
    ),
];

/// Files in which a phrase is unavoidable.
const EXCEPTIONS: &[Exception] = &[
    (
        "xtask/src/checks/words.rs",
        "",
        "the list of phrases and its tests",
    ),
    (
        "docs/celery-suite.md",
        "",
        "names and reasons of Celery's own tests",
    ),
];

/// Beginnings of the first line of a public item's documentation that do not stand alone.
const OPENINGS: [&str; 2] = ["The same", "As "];

/// Checks all Rust, Markdown, Lua, Python and TOML files of the workspace.
pub(crate) fn run() -> Outcome {
    let mut problems = Vec::new();
    for (path, text) in files("", &["rs", "md", "lua", "py", "toml"])? {
        let extension = path.rsplit('.').next().unwrap_or_default();
        problems.extend(match extension {
            "rs" => check_rust(&Source::parse(&path, &text)),
            "md" => check_passages(&path, &[whole_text(&text)]),
            "lua" => check_passages(&path, &line_comments(&text, "--")),
            "py" => check_passages(&path, &python_passages(&text)),
            _ => check_passages(&path, &line_comments(&text, "#")),
        });
    }
    report(problems)
}

/// Consecutive lines of text with the number of the first line.
#[derive(Debug, PartialEq, Eq)]
struct Passage {
    line: usize,
    text: String,
}

/// A word in lower case and the number of its line.
type Word = (String, usize);

fn check_rust(source: &Source) -> Vec<Problem> {
    let mut passages = comments(source);
    passages.extend(messages(source));
    let mut problems = check_passages(&source.path, &passages);
    problems.extend(check_test_names(source));
    problems.extend(check_openings(source));
    problems
}

/// Joins the comments of consecutive lines.
fn comments(source: &Source) -> Vec<Passage> {
    let mut passages: Vec<Passage> = Vec::new();
    let mut next_line = 0;
    for comment in &source.comments {
        let line = source.line(comment.start);
        let text = comment.text.trim_start_matches(['/', '!']);
        match passages.last_mut() {
            Some(passage) if line == next_line => {
                passage.text.push('\n');
                passage.text.push_str(text);
            }
            _ => passages.push(Passage {
                line,
                text: text.to_owned(),
            }),
        }
        next_line = line + 1;
    }
    for passage in &mut passages {
        passage.text = without_code_blocks(&passage.text);
    }
    passages
}

/// Returns the string literals outside tests that are sentences: errors, logs and help texts.
fn messages(source: &Source) -> Vec<Passage> {
    let is_message =
        |string: &&Fragment| string.text.trim().contains(' ') && !source.is_test(string.start);
    let messages = source.strings.iter().filter(is_message);
    messages
        .map(|string| Passage {
            line: source.line(string.start),
            text: string.text.clone(),
        })
        .collect()
}

/// Empties the lines of code blocks between ``` fences.
fn without_code_blocks(text: &str) -> String {
    let mut in_block = false;
    let lines = text.split('\n').map(|line| {
        let is_fence = line.trim_start().starts_with("```");
        let hidden = in_block || is_fence;
        in_block ^= is_fence;
        if hidden { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn whole_text(text: &str) -> Passage {
    Passage {
        line: 1,
        text: text.to_owned(),
    }
}

/// Returns the text after the mark in each line; a mark inside a string is not recognized.
fn line_comments(text: &str, mark: &str) -> Vec<Passage> {
    let lines = text.lines().enumerate();
    let comments = lines.filter_map(|(index, line)| {
        let comment = match line.trim_start().strip_prefix(mark) {
            Some(comment) => comment,
            None => line.split_once(&format!(" {mark} "))?.1,
        };
        Some((index + 1, comment.to_owned()))
    });
    let mut passages: Vec<Passage> = Vec::new();
    for (line, comment) in comments {
        match passages.last_mut() {
            Some(passage) if passage.line + passage.text.matches('\n').count() + 1 == line => {
                passage.text.push('\n');
                passage.text.push_str(&comment);
            }
            _ => passages.push(Passage {
                line,
                text: comment,
            }),
        }
    }
    passages
}

/// Returns the comments and the docstrings of a Python file.
fn python_passages(text: &str) -> Vec<Passage> {
    let mut passages = line_comments(text, "#");
    let parts: Vec<&str> = text.split("\"\"\"").collect();
    let mut line = 1;
    for (index, part) in parts.iter().enumerate() {
        if index % 2 == 1 {
            passages.push(Passage {
                line,
                text: (*part).to_owned(),
            });
        }
        line += part.matches('\n').count();
    }
    passages
}

fn check_passages(path: &str, passages: &[Passage]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for passage in passages {
        let words = words(passage);
        for (line, phrase) in found_phrases(&words) {
            if !is_allowed(EXCEPTIONS, path, phrase) {
                problems.push(Problem::new(path, line, format!("do not write {phrase:?}")));
            }
        }
    }
    problems
}

/// Splits a passage into words; text between backticks is code and has none.
fn words(passage: &Passage) -> Vec<Word> {
    let mut words = Vec::new();
    let mut is_code = false;
    for (index, line) in passage.text.split('\n').enumerate() {
        let mut word = String::new();
        // The final space ends the last word.
        for c in line.chars().chain([' ']) {
            is_code ^= c == '`';
            if !is_code && (c.is_alphabetic() || c == '\'') {
                word.extend(c.to_lowercase());
            } else if !word.is_empty() {
                words.push((std::mem::take(&mut word), passage.line + index));
            }
        }
        // Inline code does not continue after an empty line.
        is_code &= !line.trim().is_empty();
    }
    words
}

/// Returns the forbidden phrases among the words, each with its line.
fn found_phrases(words: &[Word]) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for phrase in FORBIDDEN {
        let parts: Vec<&str> = phrase.split(' ').collect();
        for (at, window) in words.windows(parts.len()).enumerate() {
            let is_phrase = window
                .iter()
                .zip(&parts)
                .all(|((word, _), part)| word == part);
            if is_phrase && !has_context(words, at, phrase) {
                found.push((window[0].1, *phrase));
            }
        }
    }
    found
}

/// Returns whether one of the three words before or after makes the phrase a technical term.
fn has_context(words: &[Word], at: usize, phrase: &str) -> bool {
    let near = &words[at.saturating_sub(3)..words.len().min(at + 4)];
    CONTEXTS.iter().any(|(allowed, context, _)| {
        *allowed == phrase && near.iter().any(|(word, _)| context.contains(&&**word))
    })
}

/// Names of test functions are read as words.
fn check_test_names(source: &Source) -> Vec<Problem> {
    let is_suite = source.path.contains("/conformance/");
    let functions = source.functions().into_iter();
    let tests = functions.filter(|(_, range)| is_suite || source.is_test(range.start));
    let passages: Vec<_> = tests
        .map(|(name, range)| Passage {
            line: source.line(range.start),
            text: name.replace('_', " "),
        })
        .collect();
    check_passages(&source.path, &passages)
}

/// The first line of a public item's documentation must stand alone.
fn check_openings(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut last_line = None;
    for comment in &source.comments {
        let line = source.line(comment.start);
        let is_first = last_line != Some(line - 1);
        if !comment.text.starts_with("///") {
            continue;
        }
        last_line = Some(line);
        let text = comment.text[3..].trim_start();
        let opening = OPENINGS.iter().find(|opening| text.starts_with(**opening));
        if let Some(opening) = opening
            && is_first
            && is_public_item(source, comment.start)
        {
            let text = format!("the first line of a public item begins with {opening:?}");
            problems.push(Problem::new(&source.path, line, text));
        }
    }
    problems
}

/// Returns whether the next code after this offset is public, or part of a public trait or enum.
fn is_public_item(source: &Source, at: usize) -> bool {
    if source.code[after_attributes(&source.code, at)..].starts_with("pub ") {
        return !source.is_test(at);
    }
    let mut containers = ["pub trait", "pub enum"].into_iter().flat_map(|container| {
        source.find(container).filter_map(|start| {
            let is_name = !name_at(&source.code, start + container.len() + 1).is_empty();
            is_name.then(|| start..item_end(&source.code, start).unwrap_or(start))
        })
    });
    containers.any(|range| range.contains(&at)) && !source.is_test(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(problems: &[Problem]) -> Vec<usize> {
        let mut lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        lines.sort_unstable();
        lines
    }

    fn rust(text: &str) -> Vec<usize> {
        lines(&check_rust(&Source::parse("x/src/a.rs", text)))
    }

    #[test]
    fn comments_messages_and_test_names_are_checked() {
        let text = "\
//! Nobody reads this.
// It goes
// on here.
let letter = \"letter\";
error(\"the worker is told so\");
#[cfg(test)]
mod tests {
    fn who_waits_is_served() { check(\"a letter for nobody\"); }
}
";
        assert_eq!(rust(text), [1, 2, 5, 8]);
    }

    #[test]
    fn code_in_comments_is_not_checked() {
        let text =
            "// `Letter` is a type.\n// ```\n// let who = 1;\n// ```\n// fears and bearskin\n";
        assert!(rust(text).is_empty());
    }

    #[test]
    fn technical_terms_are_allowed() {
        let passage = |text: &str| check_passages("a.md", &[whole_text(text)]);
        assert!(passage("a dead-letter queue; dead letters; upper case letters").is_empty());
        assert_eq!(lines(&passage("fine\na Letter to the broker")), [2]);
        assert_eq!(
            lines(&passage("the dead worker, as we know, has a letter")),
            [1]
        );
    }

    #[test]
    fn other_languages_are_checked() {
        assert_eq!(
            lines(&check_passages(
                "a.lua",
                &line_comments("-- who\nx = who -- ears\n", "--")
            )),
            [1, 2]
        );
        let python = "\"\"\"Doc.\n\nTells nobody.\n\"\"\"\nwho = 1  # patience\n";
        assert_eq!(
            lines(&check_passages("a.py", &python_passages(python))),
            [3, 5]
        );
    }

    #[test]
    fn opening_of_a_public_item_must_stand_alone() {
        let text = "\
/// The same as b.
pub fn a() {}
/// The same as b.
fn c() {}
/// Returns x.
/// As b.
pub fn d() {}
pub trait T {
    /// As b.
    #[must_use]
    fn e();
}
";
        assert_eq!(rust(text), [1, 9]);
    }
}
