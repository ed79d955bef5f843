//! The continuations of a task: callbacks, errbacks, chain and chord.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::error::DecodeError;
use crate::raw::Raw;
use crate::wire_signature::WireSignature;

/// The third part of a body of protocol 2: callbacks, errbacks, chain and
/// chord.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embed<'a> {
    /// The signatures that are sent with the result if the task succeeds, an
    /// array.
    pub callbacks: Option<Raw<'a>>,
    /// The signatures that are called if the task fails, an array.
    pub errbacks: Option<Raw<'a>>,
    /// The rest of the chain, an array of signatures **in reverse**: the last
    /// element is the next step.
    pub chain: Option<Raw<'a>>,
    /// The body of the chord whose header this task belongs to: one signature.
    pub chord: Option<Raw<'a>>,
    /// Entries that Celery does not define.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> Embed<'a> {
    /// The JSON of an empty embed, as this crate and as Python write it.
    pub(crate) const EMPTY_FORMS: [&'static str; 2] = [EMPTY, EMPTY_IN_PYTHON];

    /// Reads an embed without decoding its entries. Null is an empty embed.
    ///
    /// # Errors
    ///
    /// Fails if the value is not a map with text keys.
    pub fn read(raw: &Raw<'a>) -> Result<Self, DecodeError> {
        let mut embed = Self::default();
        if raw.is_null() || raw.as_json().is_some_and(is_empty_form) {
            return Ok(embed);
        }
        for (name, value) in raw.entries()? {
            embed.put(name, value);
        }
        Ok(embed)
    }

    fn put(&mut self, name: Cow<'a, str>, value: Raw<'a>) {
        match self.slot(&name) {
            Some(slot) => *slot = Some(value).filter(|value| !value.is_null()),
            None => self.extra.push((name, value)),
        }
    }

    /// Returns the field of an entry that Celery defines, or `None` for another
    /// name.
    pub(crate) fn slot(&mut self, name: &str) -> Option<&mut Option<Raw<'a>>> {
        match name {
            "callbacks" => Some(&mut self.callbacks),
            "errbacks" => Some(&mut self.errbacks),
            "chain" => Some(&mut self.chain),
            "chord" => Some(&mut self.chord),
            _ => None,
        }
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        let slots = [&self.callbacks, &self.errbacks, &self.chain, &self.chord];
        slots.iter().all(|slot| slot.is_none()) && self.extra.is_empty()
    }

    /// Returns the signatures that are sent if the task succeeds.
    ///
    /// # Errors
    ///
    /// Fails if the entry does not contain signatures.
    pub fn callbacks(&self) -> Result<Vec<WireSignature<'a>>, DecodeError> {
        signatures(self.callbacks.as_ref(), "embed.callbacks")
    }

    /// Returns the signatures that are called if the task fails.
    ///
    /// # Errors
    ///
    /// Fails if the entry does not contain signatures.
    pub fn errbacks(&self) -> Result<Vec<WireSignature<'a>>, DecodeError> {
        signatures(self.errbacks.as_ref(), "embed.errbacks")
    }

    /// Returns the rest of the chain in the order of the message: **the last
    /// element is the next step**.
    ///
    /// # Errors
    ///
    /// Fails if the entry does not contain signatures.
    pub fn chain(&self) -> Result<Vec<WireSignature<'a>>, DecodeError> {
        signatures(self.chain.as_ref(), "embed.chain")
    }

    /// Returns the body of the chord.
    ///
    /// # Errors
    ///
    /// Fails if the entry does not contain a signature.
    pub fn chord(&self) -> Result<Option<WireSignature<'a>>, DecodeError> {
        let Some(raw) = &self.chord else {
            return Ok(None);
        };
        let signature = WireSignature::read(raw);
        signature
            .map(Some)
            .map_err(|error| error.in_field("embed.chord"))
    }

    /// Converts into an embed that does not borrow from the message.
    pub fn into_owned(self) -> Embed<'static> {
        let own = |(name, value): (Cow<'_, str>, Raw<'_>)| {
            (Cow::Owned(name.into_owned()), value.into_owned())
        };
        Embed {
            callbacks: self.callbacks.map(Raw::into_owned),
            errbacks: self.errbacks.map(Raw::into_owned),
            chain: self.chain.map(Raw::into_owned),
            chord: self.chord.map(Raw::into_owned),
            extra: self.extra.into_iter().map(own).collect(),
        }
    }
}

impl Serialize for Embed<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4 + self.extra.len()))?;
        map.serialize_entry("callbacks", &self.callbacks)?;
        map.serialize_entry("errbacks", &self.errbacks)?;
        map.serialize_entry("chain", &self.chain)?;
        map.serialize_entry("chord", &self.chord)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Returns whether a JSON text is the empty embed as this crate or Python
/// writes it. Most embeds are, and this check avoids reading them.
fn is_empty_form(json: &str) -> bool {
    Embed::EMPTY_FORMS.contains(&json)
}

pub(crate) const EMPTY: &str = r#"{"callbacks":null,"errbacks":null,"chain":null,"chord":null}"#;

const EMPTY_IN_PYTHON: &str =
    r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// Reads signatures one level deep. Celery writes an array; a single signature
/// counts as an array of one, as in Celery's `maybe_list`.
fn signatures<'a>(
    slot: Option<&Raw<'a>>,
    field: &str,
) -> Result<Vec<WireSignature<'a>>, DecodeError> {
    let Some(raw) = slot else {
        return Ok(Vec::new());
    };
    let Ok(elements) = raw.elements() else {
        let alone = WireSignature::read(raw).map_err(|error| error.in_field(field))?;
        return Ok(vec![alone]);
    };
    let read = |(position, raw): (usize, &Raw<'a>)| {
        let position = format!("{field}[{position}]");
        WireSignature::read(raw).map_err(|error| error.in_field(position))
    };
    elements.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Serializer;
    use crate::value::Value;

    #[test]
    fn empty_embed_is_recognised_in_every_form() {
        let with_space = r#"{"callbacks":null ,"errbacks":null,"chain":null,"chord":null}"#;
        for text in [EMPTY, EMPTY_IN_PYTHON, with_space, "{}", "null"] {
            assert!(Embed::read(&Raw::json(text)).unwrap().is_empty(), "{text}");
        }
        assert_eq!(
            Serializer::Json.encode(&Embed::default()).unwrap(),
            EMPTY.as_bytes()
        );
    }

    #[test]
    fn unknown_entry_is_written_back() {
        let embed = Embed::read(&Raw::json(r#"{"mine":1,"chain":[]}"#)).unwrap();
        let written = Serializer::Json.encode(&embed).unwrap();
        let again: Value = Serializer::Json.decode(&written).unwrap();
        assert_eq!(again.get("mine"), Some(&Value::Int(1)));
        assert_eq!(again.get("chain"), Some(&Value::Array(vec![])));
    }

    #[test]
    fn single_signature_is_read_as_list_of_one() {
        let embed = Embed::read(&Raw::json(r#"{"callbacks":{"task":"t"}}"#)).unwrap();
        assert_eq!(embed.callbacks().unwrap()[0].task, "t");
    }

    #[test]
    fn malformed_signature_error_names_its_position() {
        let text = r#"{"chain":[{"task":"t"},{}],"chord":5,"errbacks":"x"}"#;
        let embed = Embed::read(&Raw::json(text)).unwrap();
        let field = |error: DecodeError| error.field().map(str::to_owned);
        let chain = field(embed.chain().unwrap_err());
        assert_eq!(chain.as_deref(), Some("embed.chain[1].task"));
        assert_eq!(
            field(embed.chord().unwrap_err()).as_deref(),
            Some("embed.chord")
        );
        assert_eq!(
            field(embed.errbacks().unwrap_err()).as_deref(),
            Some("embed.errbacks")
        );
    }
}
