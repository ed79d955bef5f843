//! The results of a workflow as a tree: [`ResultTree`].

use crate::error::DecodeError;
use crate::raw::Raw;
use crate::value::Value;

/// The id of a result with the ids of its members and of its parents.
///
/// Celery encodes it as `[[id, parent], members]`, where `parent` has the form
/// of the whole and `members` is null for the result of one task. Here, parents
/// are a flat list, so that a long chain does not cause deep nesting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResultTree {
    /// The id of the task or group.
    pub id: String,
    /// The results of a group, in their order; `None` for a task.
    pub members: Option<Vec<Self>>,
    /// The parents, the nearest first. Each has no parents of its own, because
    /// they follow it in this list.
    pub parents: Vec<Self>,
}

/// The maximum number of parents that are encoded, because the nesting depth in
/// a reader is the length of the chain.
const MAX_WRITTEN_PARENTS: usize = 50;

impl ResultTree {
    /// Creates the result of one task.
    pub fn task(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }

    /// Creates the results of a group.
    pub fn group(id: impl Into<String>, members: Vec<Self>) -> Self {
        Self {
            id: id.into(),
            members: Some(members),
            parents: Vec::new(),
        }
    }

    /// Appends a parent after the existing ones, with its own parents.
    #[must_use]
    pub fn after(mut self, mut parent: Self) -> Self {
        let before = std::mem::take(&mut parent.parents);
        self.parents.push(parent);
        self.parents.extend(before);
        self
    }

    /// Returns the nearest parent together with its own parents.
    pub fn parent(&self) -> Option<Self> {
        let (nearest, others) = self.parents.split_first()?;
        Some(Self {
            parents: others.to_vec(),
            ..nearest.clone()
        })
    }

    /// Returns the ids of all tasks in the tree, in order: its own id or those
    /// of its members, then those of the parents.
    pub fn task_ids(&self) -> Vec<&str> {
        let mut ids = Vec::new();
        self.collect(&mut ids);
        ids
    }

    /// Returns the ids of the tasks whose results form this result, without
    /// parents: its own id or those of its members.
    pub fn leaf_ids(&self) -> Vec<&str> {
        match &self.members {
            None => vec![&self.id],
            Some(members) => members.iter().flat_map(Self::leaf_ids).collect(),
        }
    }

    fn collect<'a>(&'a self, ids: &mut Vec<&'a str>) {
        match &self.members {
            None => ids.push(&self.id),
            Some(members) => members.iter().for_each(|member| member.collect(ids)),
        }
        for parent in &self.parents {
            parent.collect(ids);
        }
    }

    /// Decodes Celery's form. A single id is a task, as in older messages.
    ///
    /// # Errors
    ///
    /// Fails if the value has another form, or is nested deeper than 128
    /// levels.
    pub fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        Self::from_value(&raw.to_value()?)
    }

    /// Converts a decoded value in Celery's form.
    ///
    /// # Errors
    ///
    /// Fails if the value has another form.
    pub fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let unexpected_form = || DecodeError::new("expected a result, [[id, parent], members]");
        let mut parents: Vec<Self> = Vec::new();
        let mut first = None;
        let mut next = Some(value);
        while let Some(value) = next.take() {
            let node = match value {
                Value::Str(id) => Self::task(id.as_str()),
                Value::Array(parts) => {
                    let [pair, members] = parts.as_slice() else {
                        return Err(unexpected_form());
                    };
                    let (id, parent) = match pair {
                        Value::Str(id) => (id, &Value::Null),
                        Value::Array(pair) => match pair.as_slice() {
                            [Value::Str(id), parent] => (id, parent),
                            _ => return Err(unexpected_form()),
                        },
                        _ => return Err(unexpected_form()),
                    };
                    next = Some(parent).filter(|parent| !parent.is_null());
                    match members {
                        Value::Null => Self::task(id.as_str()),
                        Value::Array(members) => {
                            let members = members.iter().map(Self::from_value);
                            Self::group(id.as_str(), members.collect::<Result<_, _>>()?)
                        }
                        _ => return Err(unexpected_form()),
                    }
                }
                _ => return Err(unexpected_form()),
            };
            match first {
                None => first = Some(node),
                Some(_) => parents.push(node),
            }
        }
        first
            .map(|node| Self { parents, ..node })
            .ok_or_else(unexpected_form)
    }

    /// Converts into Celery's form, with the fifty nearest parents.
    pub fn to_value(&self) -> Value {
        let written = self.parents.iter().take(MAX_WRITTEN_PARENTS);
        let parent = written
            .rev()
            .fold(Value::Null, |farther, parent| parent.pair(farther));
        self.pair(parent)
    }

    fn pair(&self, parent: Value) -> Value {
        let members = self.members.as_ref();
        let members = members.map(|members| members.iter().map(Self::to_value).collect::<Vec<_>>());
        Value::Array(vec![
            Value::Array(vec![Value::from(self.id.as_str()), parent]),
            members.into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(tree: &ResultTree) -> String {
        let text = crate::Serializer::Json.encode(&tree.to_value()).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn tree_is_read_and_written_in_celerys_form() {
        let cases = [
            r#"[["a",null],null]"#,
            r#"[["c",[["b",[["a",null],null]],null]],null]"#,
            r#"[["g",null],[[["a",null],null],[["b",[["x",null],null]],null]]]"#,
            r#"[["body",[["g",[["a",null],null]],[[["m",null],null]]]],null]"#,
        ];
        for text in cases {
            let tree = ResultTree::read(&Raw::json(text)).unwrap();
            assert_eq!(written(&tree), text);
        }
        let tree = ResultTree::read(&Raw::json(cases[3])).unwrap();
        assert_eq!(tree.task_ids(), ["body", "m", "a"]);
        let header = tree.parent().unwrap();
        assert_eq!((header.id.as_str(), header.parents.len()), ("g", 1));
    }

    #[test]
    fn old_form_is_read_and_other_forms_are_rejected() {
        let old = ResultTree::read(&Raw::json(r#"["g",["a","b"]]"#)).unwrap();
        assert_eq!(old.task_ids(), ["a", "b"]);
        for text in [
            "5",
            "[]",
            r#"[["a"],null]"#,
            r#"[[1,null],null]"#,
            r#"["a",5]"#,
        ] {
            assert!(ResultTree::read(&Raw::json(text)).is_err(), "{text}");
        }
        let deep = format!(
            "{}{}",
            "[[\"a\",".repeat(10_000),
            "null],null]".repeat(10_000)
        );
        assert!(ResultTree::read(&Raw::json(&deep)).is_err());
    }

    #[test]
    fn long_chain_is_written_with_limited_depth() {
        let mut tree = ResultTree::task("last");
        for number in 0..100_000 {
            tree = tree.after(ResultTree::task(number.to_string()));
        }
        assert!(ResultTree::read(&Raw::json(&written(&tree))).is_ok());
    }
}
