//! The request of a task to be retried: [`Retry`].

use std::time::{Duration, SystemTime};

use celery_protocol::{Arguments, DecodeError, Map, Value};

use crate::execution::error::Failure;
use crate::task::Params;

/// A request to retry the task.
#[derive(Default)]
pub(crate) struct Retry {
    pub(crate) when: Option<When>,
    pub(crate) max_retries: Option<Option<u32>>,
    pub(crate) because: Option<Failure>,
    pub(crate) changes: Changes,
}

/// The time of a retry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    After(Duration),
    At(SystemTime),
}

/// The differences between the message of a retry and the received one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Set if and only if `kwargs` is, after [`complete`](Self::complete).
    pub(crate) args: Option<Vec<Value>>,
    pub(crate) kwargs: Option<Map>,
    pub(crate) headers: Map,
    pub(crate) expires: Option<SystemTime>,
}

impl Changes {
    /// Returns whether there are no changes.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether only positional or only keyword arguments are set, so that the others come
    /// from the received message.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.args.is_some() != self.kwargs.is_some()
    }

    /// Adds those of the `received` arguments that the new ones do not replace, as Celery does: new
    /// positional arguments replace keywords for the same parameters, and new keywords replace
    /// positional arguments.
    ///
    /// # Errors
    ///
    /// Fails if a received argument cannot be decoded.
    pub(crate) fn complete(
        &mut self,
        params: &Params,
        received: &Arguments<'_>,
    ) -> Result<(), DecodeError> {
        match (&mut self.args, &mut self.kwargs) {
            (Some(args), None) => {
                let mut kwargs = Map::new();
                for (name, value) in &received.keyword {
                    if params
                        .position(name)
                        .is_none_or(|index| index >= args.len())
                    {
                        kwargs.insert(&**name, value.to_value()?);
                    }
                }
                self.kwargs = Some(kwargs);
            }
            (None, Some(kwargs)) => {
                let mut args = Vec::with_capacity(received.positional.len());
                for value in &received.positional {
                    args.push(value.to_value()?);
                }
                // The call fails with too many arguments: keep them for its error.
                if params.takes_positional(args.len()) {
                    for (index, slot) in args.iter_mut().enumerate() {
                        let name = params.name_at(index);
                        if let Some(value) = name.and_then(|name| kwargs.remove(name)) {
                            *slot = value;
                        }
                    }
                }
                self.args = Some(args);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Body, Raw};

    use super::*;

    /// Returns the arguments of the retry of a call with `args` and `kwargs`.
    fn completed(mut changes: Changes, params: &[&str], args: &str, kwargs: &str) -> (String, Map) {
        let params = Params::parse("tasks.add", params).unwrap();
        let body = Body::new(Raw::json(args), Raw::json(kwargs));
        changes
            .complete(&params, &body.arguments().unwrap())
            .unwrap();
        let args = Value::Array(changes.args.unwrap());
        let args = Raw::encode(celery_protocol::Serializer::Json, &args).unwrap();
        (args.as_json().unwrap().to_owned(), changes.kwargs.unwrap())
    }

    #[test]
    fn new_positional_arguments_replace_keywords_of_same_parameters() {
        let changes = || Changes {
            args: Some(vec![2.into(), 3.into()]),
            ..Changes::default()
        };
        let kwargs = r#"{"x": 1, "y": 2, "label": "kept"}"#;
        let label = Map::from([("label", "kept")]);
        let (args, kept) = completed(changes(), &["x", "y", "label=null"], "[]", kwargs);
        assert_eq!((&*args, kept), ("[2,3]", label.clone()));
        // A `**rest` parameter is not replaced by position.
        let (_, kept) = completed(changes(), &["x", "y", "**rest"], "[]", kwargs);
        assert_eq!(kept, label);
    }

    #[test]
    fn new_keywords_replace_positional_arguments() {
        let changes = || Changes {
            kwargs: Some(Map::from([("x", 7), ("z", 8)])),
            ..Changes::default()
        };
        let rest = Map::from([("z", 8)]);
        let (args, kwargs) = completed(changes(), &["x", "y", "z=0"], "[1,2]", r#"{"z": 3}"#);
        assert_eq!((&*args, kwargs), ("[7,2]", rest.clone()));
        let (args, kwargs) = completed(changes(), &["x", "*args", "**kwargs"], "[1,2,3]", "{}");
        assert_eq!((&*args, kwargs), ("[7,2,3]", rest));
        // A call with too many arguments is unchanged.
        let (args, kwargs) = completed(changes(), &["x"], "[1,2]", "{}");
        assert_eq!((&*args, kwargs.len()), ("[1,2]", 2));
    }

    #[test]
    fn complete_changes_ignore_received_arguments() {
        let changes = Changes {
            args: Some(vec![5.into()]),
            kwargs: Some(Map::new()),
            ..Changes::default()
        };
        assert!(!changes.is_incomplete() && !changes.is_empty());
        let (args, kwargs) = completed(changes, &["x", "y=1"], "[1]", r#"{"y": 3}"#);
        assert_eq!((&*args, kwargs), ("[5]", Map::new()));
    }
}
