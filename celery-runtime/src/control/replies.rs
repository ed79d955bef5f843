//! What workers answered: [`Replies`].

use celery_protocol::{Map, Value};

use crate::control::error::CommandError;
use crate::control::router::CollectedReplies;

/// What each worker answered to one command, in the order in which the answers
/// came.
#[derive(Clone, Debug, PartialEq)]
pub struct Replies<T> {
    replies: Vec<(String, Result<T, CommandError>)>,
    truncated: bool,
}

impl<T> Replies<T> {
    pub(super) fn read(
        command: &str,
        gathered: CollectedReplies,
        read: fn(&Value) -> Result<T, String>,
    ) -> Self {
        let answer = |node: String, value: &Value| {
            let command = command.to_owned();
            let answer = match refusal(value) {
                Some(cause) => Err(CommandError::Refused {
                    node: node.clone(),
                    command,
                    cause,
                }),
                None => read(value).map_err(|cause| CommandError::Unreadable {
                    node: node.clone(),
                    command,
                    cause,
                }),
            };
            (node, answer)
        };
        let replies = gathered.replies.into_iter();
        Self {
            replies: replies.map(|(node, value)| answer(node, &value)).collect(),
            truncated: gathered.truncated,
        }
    }

    /// What the worker of this name answered.
    pub fn get(&self, node: &str) -> Option<&Result<T, CommandError>> {
        let mut replies = self.replies.iter();
        replies.find(|(name, _)| name == node).map(|(_, one)| one)
    }

    /// Workers and answers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Result<T, CommandError>)> {
        let replies = self.replies.iter();
        replies.map(|(node, answer)| (node.as_str(), answer))
    }

    /// The workers that could answer, and what they said.
    pub fn answers(&self) -> impl Iterator<Item = (&str, &T)> {
        self.iter()
            .filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)))
    }

    /// What the other workers failed at.
    pub fn errors(&self) -> impl Iterator<Item = &CommandError> {
        self.iter().filter_map(|(_, answer)| answer.as_ref().err())
    }

    /// How many workers answered.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether nobody answered.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whether there were more answers than are read (10,000, or 64 MiB), or
    /// some that are no answers at all. They are left out.
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

/// What is in `{"ok": …}`, as answers to commands come; any other answer itself.
pub(super) fn ok(value: &Value) -> &Value {
    sole(value, "ok").unwrap_or(value)
}

fn refusal(value: &Value) -> Option<String> {
    let text = sole(value, "error")?.as_str()?;
    Some(text.to_owned())
}

/// The value of a map with this key alone: settings have keys of any name.
fn sole<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let map: &Map = value.as_map().filter(|map| map.len() == 1)?;
    map.get(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_workers_error_hides_nobody() {
        let map = |key, value: Value| Value::Map(Map::from([(key, value)]));
        let gathered = CollectedReplies {
            replies: vec![
                ("a".into(), map("ok", "done".into())),
                ("b".into(), map("error", "KeyError('x')".into())),
                ("c".into(), map("ok", 7.into())),
                ("d".into(), "bare".into()),
            ],
            truncated: false,
        };
        let replies = Replies::read("x", gathered, |value| {
            let text = ok(value).as_str().ok_or("a text is missing")?;
            Ok(text.to_owned())
        });
        let said: Vec<_> = replies.answers().collect();
        assert_eq!(said, [("a", &"done".to_owned()), ("d", &"bare".to_owned())]);
        let errors: Vec<_> = replies.errors().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "worker b did not carry out x: KeyError('x')",
                "worker c answered x in a form that cannot be read: a text is missing"
            ]
        );
        assert!(replies.get("b").is_some_and(Result::is_err));
        assert!(replies.get("e").is_none() && replies.len() == 4);
    }
}
