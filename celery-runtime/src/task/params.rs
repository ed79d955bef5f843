//! Parameter lists, [`Params`], and the binding of a call's arguments to them.
//!
//! Binding follows CPython, including the order of the checks and the texts of its `TypeError`s,
//! because they are shown to callers in Python.

use std::borrow::Cow;
use std::fmt::Write;

use celery_protocol::{Arguments, DecodeError, Raw, Serializer, Value};
use smallvec::SmallVec;

/// The parameters of a task, in the syntax of Python's `def`: `"x"`, `"times=1"` with a default in
/// JSON, `"*args"`, `"**kwargs"`. Parameters after `"*args"` are keyword-only.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    function: String,
    /// The named parameters: positional ones first, then keyword-only ones.
    named: Vec<Param>,
    /// The number of positional parameters in `named`.
    positional: usize,
    /// Whether there is `*args`.
    var_positional: bool,
    /// Whether there is `**kwargs`.
    var_keyword: bool,
    /// Whether error texts count `self`.
    bound: bool,
}

/// An error in the declaration of parameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("invalid parameter {param:?} of task {task:?}: {cause}")]
pub struct ParamsError {
    task: String,
    param: String,
    cause: String,
}

/// An error in binding arguments to parameters. The text is that of CPython's `TypeError`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct CallError(String);

/// A named parameter.
#[derive(Clone, Debug, PartialEq)]
struct Param {
    name: String,
    default: Option<Value>,
}

/// The kind of a parameter, as in Python's `inspect.Parameter`.
enum ParamKind {
    /// A named parameter, by its index in `named`.
    Named(usize),
    VarPositional,
    VarKeyword,
}

impl Params {
    /// Parses the parameters of the task named `task`. The last component of the name is the
    /// function in error texts.
    ///
    /// # Errors
    ///
    /// Fails if a name is not an identifier, if a default is not JSON, if `*args` is repeated, or
    /// if
    /// `**kwargs` is not the last one.
    pub fn parse<P: AsRef<str>>(
        task: &str,
        params: impl IntoIterator<Item = P>,
    ) -> Result<Self, ParamsError> {
        let mut parsed = Self {
            function: task.rsplit('.').next().unwrap_or(task).to_owned(),
            named: Vec::new(),
            positional: 0,
            var_positional: false,
            var_keyword: false,
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

    /// Creates `count` positional parameters, for a declaration without names.
    pub(crate) fn positional(task: &str, count: usize) -> Self {
        let names = (0..count).map(|index| format!("arg{index}"));
        Self::parse(task, names).expect("generated names are names")
    }

    /// Converts them to the parameters of a bound task: error texts also count `self`, as in
    /// Python.
    #[must_use]
    pub fn bound(self) -> Self {
        Self {
            bound: true,
            ..self
        }
    }

    /// Returns whether there is `*args` or `**kwargs`.
    pub fn is_variadic(&self) -> bool {
        self.var_positional || self.var_keyword
    }

    /// Returns the index of the positional parameter with this name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|index| *index < self.positional)
    }

    /// Returns the name of the parameter for this positional argument; `None` if it belongs to
    /// `*args`.
    pub(crate) fn name_at(&self, index: usize) -> Option<&str> {
        Some(&self.positional_params().get(index)?.name)
    }

    /// Returns whether a call may have `count` positional arguments.
    pub(crate) fn takes_positional(&self, count: usize) -> bool {
        self.var_positional || count <= self.positional
    }

    fn positional_params(&self) -> &[Param] {
        &self.named[..self.positional]
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.named.iter().position(|param| param.name == name)
    }

    fn push(&mut self, param: &str) -> Result<(), String> {
        if self.var_keyword {
            return Err("no parameter may follow **kwargs".to_owned());
        }
        if let Some(name) = param.strip_prefix("**") {
            self.var_keyword = true;
            return identifier(name).map(drop);
        }
        if let Some(name) = param.strip_prefix('*') {
            if self.var_positional {
                return Err("there is more than one *args".to_owned());
            }
            self.var_positional = true;
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
        let is_positional = !self.var_positional;
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

    /// Returns how many more positional arguments the task accepts if `given` positional arguments
    /// and those with these `names` are set; `None` if there is no limit. Parameters after a named
    /// one have to be set by name, as for Python's `partial`. If `given` is too large, it is
    /// ignored.
    pub(crate) fn open_positions(&self, given: usize, names: &[&str]) -> Option<usize> {
        if self.var_positional {
            return None;
        }
        let Some(open) = self.positional_params().get(given..) else {
            return Some(self.positional);
        };
        let named = open
            .iter()
            .position(|param| names.contains(&param.name.as_str()));
        Some(named.unwrap_or(self.positional - given))
    }

    /// Returns whether the parameters are those of a bound task.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound
    }

    /// Binds the arguments of a call to the parameters.
    ///
    /// # Errors
    ///
    /// Fails in the order of CPython's checks: unexpected or repeated keywords, too many positional
    /// arguments, missing arguments.
    pub fn bind<'a>(&'a self, arguments: Arguments<'a>) -> Result<BoundArguments<'a>, CallError> {
        let given = arguments.positional.len();
        let mut positional = arguments.positional.into_iter();
        let mut slots: SmallVec<[Option<Raw<'a>>; 8]> = self
            .positional_params()
            .iter()
            .map(|_| positional.next())
            .collect();
        slots.resize(self.named.len(), None);
        let var_positional: Vec<_> = positional.collect();

        let mut var_keyword = Vec::new();
        for (name, value) in arguments.keyword {
            match self.find(&name) {
                None if self.var_keyword => var_keyword.push((name, value)),
                None => return Err(self.unexpected(&name)),
                Some(index) if slots[index].is_some() => return Err(self.repeated(&name)),
                Some(index) => slots[index] = Some(value),
            }
        }
        if !var_positional.is_empty() && !self.var_positional {
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
            var_positional,
            var_keyword,
            next: 0,
        })
    }

    /// Returns the kind of the parameter at this index of the declaration.
    fn kind_at(&self, index: usize) -> ParamKind {
        if self.var_positional && index == self.positional {
            return ParamKind::VarPositional;
        }
        let named = index - usize::from(self.var_positional && index > self.positional);
        if named < self.named.len() {
            ParamKind::Named(named)
        } else {
            ParamKind::VarKeyword
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
        let (given, max) = (given + own, self.positional + own);
        let min = max
            - self
                .positional_params()
                .iter()
                .filter(|param| param.default.is_some())
                .count();
        let takes = if min == max {
            format!("{max} positional argument{}", plural(max))
        } else {
            format!("from {min} to {max} positional arguments")
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

/// The arguments of one call, bound to the parameters of the declaration.
#[derive(Debug)]
pub struct BoundArguments<'a> {
    params: &'a Params,
    slots: SmallVec<[Option<Raw<'a>>; 8]>,
    var_positional: Vec<Raw<'a>>,
    var_keyword: Vec<(Cow<'a, str>, Raw<'a>)>,
    next: usize,
}

impl<'a> BoundArguments<'a> {
    /// Decodes the argument of the next parameter, or its default. `*args` is decoded as an array,
    /// `**kwargs` as a map.
    ///
    /// # Errors
    ///
    /// Fails if the argument is not a `T`.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ArgumentError> {
        let index = self.next;
        self.next += 1;
        let params = self.params;
        let decoded = match params.kind_at(index) {
            ParamKind::Named(index) => match self.slots[index].take() {
                Some(raw) => raw.decode(),
                None => {
                    let default = params.named[index].default.as_ref();
                    decode_value(default.unwrap_or(&Value::Null))
                }
            },
            ParamKind::VarPositional => self.var_positional_value(),
            ParamKind::VarKeyword => self.var_keyword_value(),
        };
        decoded.map_err(|cause| ArgumentError {
            parameter: self.parameter_name(index),
            cause,
        })
    }

    /// Decodes all arguments as a struct, by name. The defaults of the declaration replace missing
    /// arguments.
    ///
    /// # Errors
    ///
    /// Fails if the arguments are not a `T`.
    pub fn into_struct<T: serde::de::DeserializeOwned>(mut self) -> Result<T, ArgumentError> {
        let mut fields = Vec::with_capacity(self.slots.len() + self.var_keyword.len());
        let named = self.params.named.iter().zip(self.slots.drain(..));
        for (param, slot) in named {
            let value = match (slot, &param.default) {
                (Some(raw), _) => raw.to_value(),
                (None, Some(default)) => Ok(default.clone()),
                (None, None) => continue,
            };
            fields.push((param.name.as_str().into(), value));
        }
        for (name, raw) in self.var_keyword.drain(..) {
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

    fn var_positional_value<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, DecodeError> {
        let values: Result<_, _> = self
            .var_positional
            .drain(..)
            .map(|raw| raw.to_value())
            .collect();
        decode_value(&Value::Array(values?))
    }

    fn var_keyword_value<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, DecodeError> {
        let map: Result<_, DecodeError> = self
            .var_keyword
            .drain(..)
            .map(|(name, raw)| Ok((Value::from(&*name), raw.to_value()?)))
            .collect();
        decode_value(&Value::Map(map?))
    }

    fn parameter_name(&self, index: usize) -> String {
        match self.params.kind_at(index) {
            ParamKind::Named(index) => self.params.named[index].name.clone(),
            ParamKind::VarPositional => "*args".to_owned(),
            ParamKind::VarKeyword => "**kwargs".to_owned(),
        }
    }
}

/// An argument whose type is not that of its parameter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("argument '{parameter}' has the wrong type: {cause}")]
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
        Err(format!("{name:?} is not an identifier"))
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
        let count = params.named.len()
            + usize::from(params.var_positional)
            + usize::from(params.var_keyword);
        (0..count)
            .map(|_| bound.take().map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn positional_and_keyword_arguments_bind_equally() {
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
    fn defaults_and_variadic_parameters_bind() {
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
    fn parameters_after_args_are_keyword_only() {
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
        assert!(
            repeated.to_string().contains("more than one *args"),
            "{repeated}"
        );
    }

    /// The texts are those of CPython 3.11.
    #[test]
    fn binding_errors_have_texts_of_cpython() {
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
    fn bound_task_error_counts_self() {
        let params = Params::parse("tasks.add", ["x"]).unwrap().bound();
        let body = Body::new(Raw::json("[1, 2]"), Raw::json("{}"));
        let arguments = body.arguments().unwrap();
        assert_eq!(
            params.bind(arguments).unwrap_err().to_string(),
            "add() takes 2 positional arguments but 3 were given"
        );
    }

    #[test]
    fn malformed_declaration_is_rejected() {
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
