//! Signatures as they are encoded in messages.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::codec::Serializer;
use crate::error::{DecodeError, EncodeError};
use crate::raw::Raw;
use crate::value::{Map, Value};

/// A signature in a message, decoded one level deep: the signatures inside a
/// chain, group or chord stay undecoded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WireSignature<'a> {
    /// The name of the task; `celery.chain`, `celery.group` or `celery.chord`
    /// for a compound signature.
    pub task: Cow<'a, str>,
    /// The positional arguments, an array.
    pub args: Raw<'a>,
    /// The keyword arguments, a map. A compound signature has its parts here.
    pub kwargs: Raw<'a>,
    /// The options of the call, a map. A frozen signature has its ids here.
    pub options: Raw<'a>,
    /// `chain`, `group` or `chord` for a compound signature.
    pub subtask_type: Option<Cow<'a, str>>,
    /// Whether arguments that are added later, such as the result of the
    /// previous step, are ignored.
    pub immutable: bool,
    /// Entries that Celery does not define.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> WireSignature<'a> {
    /// Creates a signature of `task` without arguments.
    pub fn new(task: impl Into<Cow<'a, str>>) -> Self {
        Self {
            task: task.into(),
            args: Raw::json("[]"),
            kwargs: Raw::json("{}"),
            options: Raw::json("{}"),
            subtask_type: None,
            immutable: false,
            extra: Vec::new(),
        }
    }

    /// Reads one level of a signature. All entries except `task` may be
    /// missing.
    ///
    /// # Errors
    ///
    /// Fails if the value is not a map with `task`, or if an entry has another
    /// type than in Celery.
    pub fn read(raw: &Raw<'a>) -> Result<Self, DecodeError> {
        let mut signature = Self::new("");
        let mut named = false;
        for (name, value) in raw.entries()? {
            named |= name == "task";
            signature.put(name, value)?;
        }
        if !named {
            return Err(DecodeError::new("a signature must have this entry").in_field("task"));
        }
        Ok(signature)
    }

    fn put(&mut self, name: Cow<'a, str>, value: Raw<'a>) -> Result<(), DecodeError> {
        let slot = match &*name {
            "task" => {
                self.task = text(&name, &value)?;
                return Ok(());
            }
            "subtask_type" if !value.is_null() => {
                self.subtask_type = Some(text(&name, &value)?);
                return Ok(());
            }
            "immutable" => {
                let immutable: Option<bool> = decode(&name, &value)?;
                self.immutable = immutable.unwrap_or_default();
                return Ok(());
            }
            "args" => &mut self.args,
            "kwargs" => &mut self.kwargs,
            "options" => &mut self.options,
            "subtask_type" => return Ok(()),
            _ => {
                self.extra.push((name, value));
                return Ok(());
            }
        };
        // Celery never writes null here and reads null as empty.
        if !value.is_null() {
            *slot = value;
        }
        Ok(())
    }

    /// Replaces the positional arguments.
    ///
    /// # Errors
    ///
    /// Fails if the arguments cannot be serialized.
    pub fn with_args<T: Serialize + ?Sized>(self, args: &T) -> Result<Self, EncodeError> {
        let args = Raw::encode(Serializer::Json, args);
        let args = args.map_err(|error| error.in_field("args"))?;
        Ok(Self { args, ..self })
    }

    /// Replaces the keyword arguments.
    ///
    /// # Errors
    ///
    /// Fails if the arguments cannot be serialized.
    pub fn with_kwargs<T: Serialize + ?Sized>(self, kwargs: &T) -> Result<Self, EncodeError> {
        let kwargs = Raw::encode(Serializer::Json, kwargs);
        let kwargs = kwargs.map_err(|error| error.in_field("kwargs"))?;
        Ok(Self { kwargs, ..self })
    }

    /// Sets one option and replaces an existing value.
    ///
    /// # Errors
    ///
    /// Fails if the existing options cannot be decoded.
    pub fn with_option(self, name: &str, value: impl Into<Value>) -> Result<Self, DecodeError> {
        let mut options: Map = match self.options.to_value() {
            Ok(Value::Map(options)) => options,
            Ok(_) => return Err(DecodeError::new("expected a map").in_field("options")),
            Err(error) => return Err(error.in_field("options")),
        };
        options.insert(name, value);
        let options = Raw::from_value(Value::Map(options));
        Ok(Self { options, ..self })
    }

    /// Returns the value of one option. Null counts as absent, as in Celery.
    ///
    /// # Errors
    ///
    /// Fails if the options cannot be decoded.
    pub fn option(&self, name: &str) -> Result<Option<Raw<'a>>, DecodeError> {
        let entries = self.options.entries();
        let entries = entries.map_err(|error| error.in_field("options"))?;
        let found = entries.into_iter().rev().find(|(key, _)| key == name);
        Ok(found
            .map(|(_, value)| value)
            .filter(|value| !value.is_null()))
    }

    /// Returns whether this is a chain, group or chord, which is not sent as
    /// one message.
    pub fn is_compound(&self) -> bool {
        let kind = self.subtask_type.as_deref();
        kind.is_some_and(|kind| COMPOUND.contains(&kind))
    }

    /// Converts into a signature that does not borrow from the message.
    pub fn into_owned(self) -> WireSignature<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let entries = self.extra.into_iter();
        WireSignature {
            task: own(self.task),
            args: self.args.into_owned(),
            kwargs: self.kwargs.into_owned(),
            options: self.options.into_owned(),
            subtask_type: self.subtask_type.map(own),
            immutable: self.immutable,
            extra: entries
                .map(|(name, value)| (own(name), value.into_owned()))
                .collect(),
        }
    }
}

const COMPOUND: [&str; 3] = ["chain", "group", "chord"];

/// Serializes the entries in Python's order.
impl Serialize for WireSignature<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(6 + self.extra.len()))?;
        map.serialize_entry("task", &self.task)?;
        map.serialize_entry("args", &self.args)?;
        map.serialize_entry("kwargs", &self.kwargs)?;
        map.serialize_entry("options", &self.options)?;
        map.serialize_entry("subtask_type", &self.subtask_type)?;
        map.serialize_entry("immutable", &self.immutable)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn text<'a>(name: &str, value: &Raw<'a>) -> Result<Cow<'a, str>, DecodeError> {
    let crate::cow_str::CowStr(text) = decode(name, value)?;
    Ok(text)
}

fn decode<'a, T: serde::Deserialize<'a>>(name: &str, value: &Raw<'a>) -> Result<T, DecodeError> {
    value.decode().map_err(|error| error.in_field(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_written_in_pythons_order() {
        let signature = WireSignature::new("tasks.add").with_args(&(1,)).unwrap();
        let json = Serializer::Json.encode(&signature).unwrap();
        let expected = concat!(
            r#"{"task":"tasks.add","args":[1],"kwargs":{},"options":{},"#,
            r#""subtask_type":null,"immutable":false}"#,
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn chain_is_read_one_level_deep() {
        let text = r#"{"task":"celery.chain","args":null,"kwargs":{"tasks":[{"task":1}]},
            "subtask_type":"chain","immutable":null,"chord_size":2}"#;
        let chain = WireSignature::read(&Raw::json(text)).unwrap();
        assert!(chain.is_compound() && !chain.immutable);
        assert_eq!(chain.args, Raw::json("[]"));
        assert_eq!(chain.kwargs.as_json(), Some(r#"{"tasks":[{"task":1}]}"#));
        assert_eq!(chain.extra[0].0, "chord_size");
        let again = Raw::encode(Serializer::Json, &chain).unwrap();
        assert_eq!(WireSignature::read(&again).unwrap(), chain);
    }

    #[test]
    fn option_is_set_and_found() {
        let signature = WireSignature::new("t")
            .with_option("task_id", "id-1")
            .unwrap();
        let signature = signature.with_option("queue", ()).unwrap();
        let id = signature.option("task_id").unwrap().unwrap();
        assert_eq!(id.decode::<String>().unwrap(), "id-1");
        assert_eq!(signature.option("queue").unwrap(), None);
        assert_eq!(signature.option("other").unwrap(), None);
    }

    #[test]
    fn wrong_type_error_names_the_field() {
        let cases = [
            (r#"{"args":[]}"#, Some("task")),
            (r#"{"task":5}"#, Some("task")),
            (r#"{"task":"t","immutable":"yes"}"#, Some("immutable")),
            ("[]", None),
        ];
        for (text, field) in cases {
            let error = WireSignature::read(&Raw::json(text)).unwrap_err();
            assert_eq!(error.field(), field, "{text}");
        }
    }

    #[test]
    fn deep_signatures_do_not_overflow_the_stack() {
        let deep = format!(
            "{}{}",
            r#"{"task":"t","kwargs":"#.repeat(900),
            "{}".to_owned() + &"}".repeat(900)
        );
        let mut raw = Raw::json(&deep);
        for _ in 0..900 {
            raw = WireSignature::read(&raw).unwrap().kwargs;
        }
        assert_eq!(raw.as_json(), Some("{}"));
    }
}
