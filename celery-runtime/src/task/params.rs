//! Parameter lists, and the binding of a call's arguments to them.
//!
//! Binding follows CPython, down to the order of the checks and the words of
//! its `TypeError`s, since callers in Python read them.

use std::borrow::Cow;
use std::fmt::Write;

use celery_protocol::{Arguments, DecodeError, Raw, Serializer, Value};
use smallvec::SmallVec;

/// The parameters of a task, written as in Python's `def` line: `"x"`,
/// `"times=1"` with a default as JSON, `"*args"`, `"**kwargs"`. Those between
/// the last two are given by keyword only.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    function: String,
    /// Those with a name: positional ones first.
    named: Vec<Param>,
    /// How many of them are positional.
    positional: usize,
    rest: bool,
    keywords: bool,
    bound: bool,
}

/// A declaration of parameters that cannot be understood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("cannot read parameter {param:?} of task {task:?}: {cause}")]
pub struct ParamsError {
    task: String,
    param: String,
    cause: String,
}

/// Arguments that do not fit the parameters; the text is CPython's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct CallError(String);

#[derive(Clone, Debug, PartialEq)]
struct Param {
    name: String,
    default: Option<Value>,
}

/// A place in a declaration.
enum Place {
    /// A parameter with a name, by its index among those.
    Named(usize),
    Rest,
    Keywords,
}

impl Params {
    /// Reads the parameters of the task called `task`, whose last part names
    /// the function in error messages.
    ///
    /// # Errors
    ///
    /// When an entry is no name, a default is not JSON, `*args` is there twice,
    /// or `**kwargs` is not at the end.
    pub fn parse<P: AsRef<str>>(
        task: &str,
        params: impl IntoIterator<Item = P>,
    ) -> Result<Self, ParamsError> {
        let mut parsed = Self {
            function: task.rsplit('.').next().unwrap_or(task).to_owned(),
            named: Vec::new(),
            positional: 0,
            rest: false,
            keywords: false,
            bound: false,
        };
        for param in params {
            let param = param.as_ref();
            parsed.push(param).map_err(|cause| ParamsError {
                task: task.to_owned(),
                param: param.to_owned(),
                cause,
            })?;
        }
        Ok(parsed)
    }

    /// Parameters without names, for a declaration that gives none: exactly
    /// `count` positional arguments.
    pub(crate) fn positional(task: &str, count: usize) -> Self {
        let names = (0..count).map(|index| format!("arg{index}"));
        Self::parse(task, names).expect("generated names are names")
    }

    /// The same for a bound task, whose Python twin also counts `self`.
    #[must_use]
    pub fn bound(self) -> Self {
        Self {
            bound: true,
            ..self
        }
    }

    /// Whether positional or keyword arguments beyond the named ones are
    /// accepted.
    pub fn is_variadic(&self) -> bool {
        self.rest || self.keywords
    }

    /// The place of the positional parameter with this name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|index| *index < self.positional)
    }

    /// The name of the parameter that takes this positional argument; `None`
    /// for one of `*args`.
    pub(crate) fn name_at(&self, index: usize) -> Option<&str> {
        Some(&self.takers().get(index)?.name)
    }

    /// Whether a call may have so many positional arguments.
    pub(crate) fn takes_positional(&self, count: usize) -> bool {
        self.rest || count <= self.positional
    }

    fn takers(&self) -> &[Param] {
        &self.named[..self.positional]
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.named.iter().position(|param| param.name == name)
    }

    fn push(&mut self, param: &str) -> Result<(), String> {
        if self.keywords {
            return Err("nothing may follow **kwargs".to_owned());
        }
        if let Some(name) = param.strip_prefix("**") {
            self.keywords = true;
            return identifier(name).map(drop);
        }
        if let Some(name) = param.strip_prefix('*') {
            if self.rest {
                return Err("there is one *args already".to_owned());
            }
            self.rest = true;
            return identifier(name).map(drop);
        }
        let (name, default) = match param.split_once('=') {
            None => (param, None),
            Some((name, json)) => {
                let value = Serializer::Json
                    .decode::<Value>(json.as_bytes())
                    .map_err(|error| format!("the default is not JSON: {error}"))?;
                (name, Some(value))
            }
        };
        let is_positional = !self.rest;
        if is_positional
            && default.is_none()
            && self.named.iter().any(|earlier| earlier.default.is_some())
        {
            return Err("a parameter without default follows one with a default".to_owned());
        }
        self.named.push(Param {
            name: identifier(name)?.to_owned(),
            default,
        });
        self.positional += usize::from(is_positional);
        Ok(())
    }

    /// How many more positional arguments it takes when so many and those with
    /// these names are there; `None` is any number. As for Python's `partial`,
    /// what follows a named one is given by name, too. Arguments that do not fit
    /// leave it as it is.
    pub(crate) fn open_positions(&self, given: usize, names: &[&str]) -> Option<usize> {
        if self.rest {
            return None;
        }
        let Some(left) = self.takers().get(given..) else {
            return Some(self.positional);
        };
        let mut left = left.iter();
        let named = left.position(|param| names.contains(&param.name.as_str()));
        Some(named.unwrap_or(self.positional - given))
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.bound
    }

    /// Gives each parameter its argument.
    ///
    /// # Errors
    ///
    /// As CPython: unexpected or repeated keywords first, then too many
    /// positional arguments, then missing ones.
    pub fn bind<'a>(&'a self, arguments: Arguments<'a>) -> Result<BoundArguments<'a>, CallError> {
        let given = arguments.positional.len();
        let mut positional = arguments.positional.into_iter();
        let mut slots: SmallVec<[Option<Raw<'a>>; 8]> =
            self.takers().iter().map(|_| positional.next()).collect();
        slots.resize(self.named.len(), None);
        let rest: Vec<_> = positional.collect();

        let mut keywords = Vec::new();
        for (name, value) in arguments.keyword {
            match self.find(&name) {
                None if self.keywords => keywords.push((name, value)),
                None => return Err(self.unexpected(&name)),
                Some(index) if slots[index].is_some() => return Err(self.repeated(&name)),
                Some(index) => slots[index] = Some(value),
            }
        }
        if !rest.is_empty() && !self.rest {
            return Err(self.too_many(given));
        }
        let (first, last) = self.named.split_at(self.positional);
        let (filled, named) = slots.split_at(self.positional);
        for (kind, params, slots) in [("positional", first, filled), ("keyword-only", last, named)]
        {
            let pairs = params.iter().zip(slots);
            let missing: Vec<_> = pairs
                .filter(|(param, slot)| slot.is_none() && param.default.is_none())
                .map(|(param, _)| param.name.as_str())
                .collect();
            if !missing.is_empty() {
                return Err(self.missing(kind, &missing));
            }
        }
        Ok(BoundArguments {
            params: self,
            slots,
            rest,
            keywords,
            next: 0,
        })
    }

    /// What the declaration has at this place.
    fn at(&self, index: usize) -> Place {
        if self.rest && index == self.positional {
            return Place::Rest;
        }
        let named = index - usize::from(self.rest && index > self.positional);
        match named < self.named.len() {
            true => Place::Named(named),
            false => Place::Keywords,
        }
    }

    fn unexpected(&self, name: &str) -> CallError {
        CallError(format!(
            "{}() got an unexpected keyword argument '{name}'",
            self.function
        ))
    }

    fn repeated(&self, name: &str) -> CallError {
        CallError(format!(
            "{}() got multiple values for argument '{name}'",
            self.function
        ))
    }

    fn too_many(&self, given: usize) -> CallError {
        let own = usize::from(self.bound);
        let (given, most) = (given + own, self.positional + own);
        let least = most
            - self
                .takers()
                .iter()
                .filter(|param| param.default.is_some())
                .count();
        let takes = if least == most {
            format!("{most} positional argument{}", plural(most))
        } else {
            format!("from {least} to {most} positional arguments")
        };
        let were = if given == 1 { "was" } else { "were" };
        CallError(format!(
            "{}() takes {takes} but {given} {were} given",
            self.function
        ))
    }

    fn missing(&self, kind: &str, names: &[&str]) -> CallError {
        let mut list = String::new();
        for (index, name) in names.iter().enumerate() {
            let separator = match (index, names.len()) {
                (0, _) => "",
                (1, 2) => " and ",
                (last, count) if last + 1 == count => ", and ",
                _ => ", ",
            };
            let _ = write!(list, "{separator}'{name}'");
        }
        CallError(format!(
            "{}() missing {} required {kind} argument{}: {list}",
            self.function,
            names.len(),
            plural(names.len()),
        ))
    }
}

/// The arguments of one call, each at its parameter, in order of declaration.
#[derive(Debug)]
pub struct BoundArguments<'a> {
    params: &'a Params,
    slots: SmallVec<[Option<Raw<'a>>; 8]>,
    rest: Vec<Raw<'a>>,
    keywords: Vec<(Cow<'a, str>, Raw<'a>)>,
    next: usize,
}

impl<'a> BoundArguments<'a> {
    /// The argument of the next parameter, decoded straight from the message;
    /// `*args` decodes as an array, `**kwargs` as a map.
    ///
    /// # Errors
    ///
    /// When the argument is not a `T`.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ArgumentError> {
        let index = self.next;
        self.next += 1;
        let params = self.params;
        let decoded = match params.at(index) {
            Place::Named(index) => match self.slots[index].take() {
                Some(raw) => raw.decode(),
                None => {
                    let default = params.named[index].default.as_ref();
                    decode_value(default.unwrap_or(&Value::Null))
                }
            },
            Place::Rest => self.rest_value(),
            Place::Keywords => self.keywords_value(),
        };
        decoded.map_err(|cause| ArgumentError {
            parameter: self.parameter_name(index),
            cause,
        })
    }

    /// All arguments that were given, by name: for a struct of arguments.
    /// Defaults of the declaration fill what is missing.
    ///
    /// # Errors
    ///
    /// When they do not make up a `T`.
    pub fn into_struct<T: serde::de::DeserializeOwned>(mut self) -> Result<T, ArgumentError> {
        let mut fields = Vec::with_capacity(self.slots.len() + self.keywords.len());
        let named = self.params.named.iter().zip(self.slots.drain(..));
        for (param, slot) in named {
            let value = match (slot, &param.default) {
                (Some(raw), _) => raw.to_value(),
                (None, Some(default)) => Ok(default.clone()),
                (None, None) => continue,
            };
            fields.push((param.name.as_str().into(), value));
        }
        for (name, raw) in self.keywords.drain(..) {
            fields.push((Value::from(&*name), raw.to_value()));
        }
        fields
            .into_iter()
            .map(|(name, value)| Ok((name, value?)))
            .collect::<Result<_, _>>()
            .and_then(|map| decode_value(&Value::Map(map)))
            .map_err(|cause| ArgumentError {
                parameter: "arguments".to_owned(),
                cause,
            })
    }

    fn rest_value<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, DecodeError> {
        let values: Result<_, _> = self.rest.drain(..).map(|raw| raw.to_value()).collect();
        decode_value(&Value::Array(values?))
    }

    fn keywords_value<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, DecodeError> {
        let map: Result<_, DecodeError> = self
            .keywords
            .drain(..)
            .map(|(name, raw)| Ok((Value::from(&*name), raw.to_value()?)))
            .collect();
        decode_value(&Value::Map(map?))
    }

    fn parameter_name(&self, index: usize) -> String {
        match self.params.at(index) {
            Place::Named(index) => self.params.named[index].name.clone(),
            Place::Rest => "*args".to_owned(),
            Place::Keywords => "**kwargs".to_owned(),
        }
    }
}

/// An argument that has another type than the parameter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("argument '{parameter}' does not fit: {cause}")]
pub struct ArgumentError {
    parameter: String,
    cause: DecodeError,
}

fn decode_value<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, DecodeError> {
    T::deserialize(value)
}

fn identifier(name: &str) -> Result<&str, String> {
    let mut chars = name.chars();
    let starts = chars
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_');
    if starts && chars.all(|c| c.is_alphanumeric() || c == '_') {
        Ok(name)
    } else {
        Err(format!("{name:?} is not a name"))
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use celery_protocol::Body;

    use super::*;

    fn call(params: &[&str], args: &str, kwargs: &str) -> Result<Vec<Value>, String> {
        let params = Params::parse("tasks.add", params).unwrap();
        let body = Body::new(Raw::json(args), Raw::json(kwargs));
        let arguments = body.arguments().unwrap();
        let mut bound = params.bind(arguments).map_err(|error| error.to_string())?;
        let count = params.named.len() + usize::from(params.rest) + usize::from(params.keywords);
        (0..count)
            .map(|_| bound.take().map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn positional_keyword_and_mixed_calls_bind_alike() {
        let expected = vec![Value::Int(1), Value::Int(2)];
        for (args, kwargs) in [
            ("[1, 2]", "{}"),
            ("[1]", r#"{"y": 2}"#),
            ("[]", r#"{"y": 2, "x": 1}"#),
        ] {
            assert_eq!(call(&["x", "y"], args, kwargs).unwrap(), expected);
        }
    }

    #[test]
    fn defaults_and_variadics() {
        assert_eq!(call(&["times=1"], "[]", "{}").unwrap(), [Value::Int(1)]);
        assert_eq!(call(&["times=1"], "[5]", "{}").unwrap(), [Value::Int(5)]);
        let all = call(&["*args", "**kwargs"], "[1, 2]", r#"{"k": null}"#).unwrap();
        assert_eq!(all[0], Value::Array(vec![Value::Int(1), Value::Int(2)]));
        assert_eq!(
            all[1],
            Value::Map([(Value::from("k"), Value::Null)].into_iter().collect())
        );
    }

    #[test]
    fn parameters_behind_args_are_given_by_keyword() {
        let params = ["x", "*args", "y", "z=3", "**kwargs"];
        let all = call(&params, "[1, 2]", r#"{"y": 4, "k": 5}"#).unwrap();
        let rest = Value::Array(vec![Value::Int(2)]);
        let keywords = Value::Map([("k", 5)].into());
        assert_eq!(all, [1.into(), rest, 4.into(), 3.into(), keywords]);
        assert_eq!(
            call(&["*args", "y", "z"], "[1, 2]", r#"{"z": 1}"#).unwrap_err(),
            "add() missing 1 required keyword-only argument: 'y'"
        );
        let repeated = Params::parse("tasks.add", ["*args", "*more"]).unwrap_err();
        assert!(repeated.to_string().contains("one *args"), "{repeated}");
    }

    /// Each text was read off CPython 3.11.
    #[test]
    fn errors_are_worded_as_python_words_them() {
        for (params, args, kwargs, expected) in [
            (
                &["x", "y"][..],
                "[1]",
                "{}",
                "add() missing 1 required positional argument: 'y'",
            ),
            (
                &["x", "y"],
                "[]",
                "{}",
                "add() missing 2 required positional arguments: 'x' and 'y'",
            ),
            (
                &["x", "y", "z"],
                "[]",
                "{}",
                "add() missing 3 required positional arguments: 'x', 'y', and 'z'",
            ),
            (
                &["x"],
                "[1, 2]",
                "{}",
                "add() takes 1 positional argument but 2 were given",
            ),
            (
                &[],
                "[1]",
                "{}",
                "add() takes 0 positional arguments but 1 was given",
            ),
            (
                &["x", "y=2"],
                "[1, 2, 3]",
                "{}",
                "add() takes from 1 to 2 positional arguments but 3 were given",
            ),
            (
                &["x"],
                "[1]",
                r#"{"z": 1}"#,
                "add() got an unexpected keyword argument 'z'",
            ),
            (
                &["x"],
                "[1]",
                r#"{"x": 1}"#,
                "add() got multiple values for argument 'x'",
            ),
        ] {
            assert_eq!(call(params, args, kwargs).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_bound_task_counts_self() {
        let params = Params::parse("tasks.add", ["x"]).unwrap().bound();
        let body = Body::new(Raw::json("[1, 2]"), Raw::json("{}"));
        let arguments = body.arguments().unwrap();
        assert_eq!(
            params.bind(arguments).unwrap_err().to_string(),
            "add() takes 2 positional arguments but 3 were given"
        );
    }

    #[test]
    fn a_bad_declaration_is_refused() {
        for bad in [
            &["x y"][..],
            &["x=nope"],
            &["x=1", "y"],
            &["**k", "x"],
            &["*a", "*x"],
            &[""],
        ] {
            assert!(Params::parse("t", bad).is_err(), "{bad:?}");
        }
    }
}
