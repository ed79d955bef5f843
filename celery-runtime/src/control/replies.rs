//! The replies of workers to one command: [`Replies`].

use celery_protocol::{Map, Value};

use crate::control::error::CommandError;
use crate::control::router::CollectedReplies;

/// The replies of workers to one command, in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Replies<T> {
    replies: Vec<(String, Result<T, CommandError>)>,
    truncated: bool,
}

impl<T> Replies<T> {
    pub(super) fn read(
        command: &str,
        collected: CollectedReplies,
        read: fn(&Value) -> Result<T, String>,
    ) -> Self {
        let answer = |node: String, value: &Value| {
            let command = command.to_owned();
            let answer = match error_text(value) {
                Some(cause) => Err(CommandError::Failed {
                    node: node.clone(),
                    command,
                    cause,
                }),
                None => read(value).map_err(|cause| CommandError::Decode {
                    node: node.clone(),
                    command,
                    cause,
                }),
            };
            (node, answer)
        };
        let replies = collected.replies.into_iter();
        Self {
            replies: replies.map(|(node, value)| answer(node, &value)).collect(),
            truncated: collected.truncated,
        }
    }

    /// Returns the reply of the worker of this name.
    pub fn get(&self, node: &str) -> Option<&Result<T, CommandError>> {
        let mut replies = self.replies.iter();
        replies.find(|(name, _)| name == node).map(|(_, one)| one)
    }

    /// Iterates over the names of the workers and their replies.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Result<T, CommandError>)> {
        let replies = self.replies.iter();
        replies.map(|(node, answer)| (node.as_str(), answer))
    }

    /// Iterates over the names of the workers and their successful replies.
    pub fn answers(&self) -> impl Iterator<Item = (&str, &T)> {
        self.iter()
            .filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)))
    }

    /// Iterates over the errors of workers.
    pub fn errors(&self) -> impl Iterator<Item = &CommandError> {
        self.iter().filter_map(|(_, answer)| answer.as_ref().err())
    }

    /// Returns the number of replies.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Returns whether no worker has replied.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Returns whether replies were dropped: those beyond 10,000 replies or 64 MiB,
    /// and those that could not be decoded.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }
}

impl<T> IntoIterator for Replies<T> {
    type Item = (String, Result<T, CommandError>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.replies.into_iter()
    }
}

/// Returns the value in `{"ok": …}`, the usual form of a reply; otherwise the reply
/// itself.
pub(super) fn ok(value: &Value) -> &Value {
    sole(value, "ok").unwrap_or(value)
}

/// Returns the text in `{"error": …}`.
fn error_text(value: &Value) -> Option<String> {
    let text = sole(value, "error")?.as_str()?;
    Some(text.to_owned())
}

/// Returns the value of a map whose only key is this one. Other maps, such as
/// settings, may contain the same key among others.
fn sole<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let map: &Map = value.as_map().filter(|map| map.len() == 1)?;
    map.get(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_one_worker_keeps_other_replies() {
        let map = |key, value: Value| Value::Map(Map::from([(key, value)]));
        let collected = CollectedReplies {
            replies: vec![
                ("a".into(), map("ok", "done".into())),
                ("b".into(), map("error", "KeyError('x')".into())),
                ("c".into(), map("ok", 7.into())),
                ("d".into(), "bare".into()),
            ],
            truncated: false,
        };
        let replies = Replies::read("x", collected, |value| {
            let text = ok(value).as_str().ok_or("a text is missing")?;
            Ok(text.to_owned())
        });
        let answers: Vec<_> = replies.answers().collect();
        assert_eq!(
            answers,
            [("a", &"done".to_owned()), ("d", &"bare".to_owned())]
        );
        let errors: Vec<_> = replies.errors().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "command x failed in worker b: KeyError('x')",
                "cannot decode the reply of worker c to x: a text is missing"
            ]
        );
        assert!(replies.get("b").is_some_and(Result::is_err));
        assert!(replies.get("e").is_none() && replies.len() == 4);
    }
}
