//! The body of protocol 2: `[args, kwargs, embed]`.

mod encode;

use crate::embed::Embed;
use crate::error::DecodeError;
use crate::raw::{Elements, Entries, Raw};

pub use self::encode::encode_body;
pub(crate) use self::encode::{INITIAL_CAPACITY, write_args, write_kwargs};

/// The body of a task message of protocol 2, with its three parts undecoded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Body<'a> {
    /// The positional arguments, an array.
    pub args: Raw<'a>,
    /// The keyword arguments, a map.
    pub kwargs: Raw<'a>,
    /// The callbacks, errbacks, chain and chord of the task.
    pub embed: Embed<'a>,
}

impl<'a> Body<'a> {
    /// Creates a body without callbacks, errbacks, chain and chord.
    pub fn new(args: Raw<'a>, kwargs: Raw<'a>) -> Self {
        Self {
            args,
            kwargs,
            embed: Embed::default(),
        }
    }

    /// Splits a body into its parts. The arguments are not decoded.
    ///
    /// # Errors
    ///
    /// Fails if the body is not an array of three elements, or if its last
    /// element is not a map.
    pub fn read(raw: &Raw<'a>) -> Result<Self, DecodeError> {
        let parts = raw.three_elements(&Embed::EMPTY_FORMS);
        let [args, kwargs, embed] = match parts {
            Some(parts) => parts,
            None => three_of(raw).map_err(in_body)?,
        };
        let embed = Embed::read(&embed).map_err(|error| in_body(error.in_field("embed")))?;
        Ok(Self {
            args,
            kwargs,
            embed,
        })
    }

    /// Returns each argument separately, undecoded.
    ///
    /// # Errors
    ///
    /// Fails if `args` is not an array, or if `kwargs` is not a map with text
    /// keys.
    pub fn arguments(&self) -> Result<Arguments<'a>, DecodeError> {
        let mut arguments = Arguments::default();
        let positional = self.args.elements_into(&mut arguments.positional);
        positional.map_err(|error| error.in_field("args"))?;
        let keyword = self.kwargs.entries_into(&mut arguments.keyword);
        keyword.map_err(|error| error.in_field("kwargs"))?;
        Ok(arguments)
    }
}

/// Splits a body that [`Raw::three_elements`] does not handle: one that is not
/// borrowed JSON, or not an array of three elements.
fn three_of<'a>(raw: &Raw<'a>) -> Result<[Raw<'a>; 3], DecodeError> {
    let parts = raw.elements()?.into_vec();
    parts.try_into().map_err(|parts: Vec<Raw<'a>>| {
        let count = parts.len();
        DecodeError::new(format!(
            "expected [args, kwargs, embed], found {count} elements"
        ))
    })
}

fn in_body(error: DecodeError) -> DecodeError {
    error.in_field("body")
}

/// The arguments of a call, undecoded.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Arguments<'a> {
    /// The positional arguments, in order.
    pub positional: Elements<'a>,
    /// The keyword arguments, in the order of the message.
    pub keyword: Entries<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_body_error_names_the_field() {
        let cases = [
            ("5", "body"),
            ("[[],{}]", "body"),
            ("[[],{},5]", "body.embed"),
            ("[[],{},{}] x", "body"),
            ("[[],{},{}", "body"),
        ];
        for (text, field) in cases {
            let error = Body::read(&Raw::json(text)).unwrap_err();
            assert_eq!(error.field(), Some(field), "{text}");
        }
        let body = Body::read(&Raw::json("[5,{},{}]")).unwrap();
        assert_eq!(body.arguments().unwrap_err().field(), Some("args"));
        let body = Body::read(&Raw::json("[[],[],{}]")).unwrap();
        assert_eq!(body.arguments().unwrap_err().field(), Some("kwargs"));
    }
}
