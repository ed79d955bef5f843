//! The argument types of tasks: [`TaskArgs`], implemented by tuples and [`Kwargs`].

use celery_protocol::{
    Embed, EncodeError, Map, Raw, Serializer, TaskHeaders, Value, encode_body, repr, v1,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::task::params::{ArgumentError, BoundArguments};

/// The arguments of a task: `()`, a tuple of up to eight elements, or [`Kwargs`].
///
/// The elements of a tuple are the parameters of the declaration in their order. The element of
/// `*args` is an array (a `Vec`), that of `**kwargs` a map. Parameters between them are sent as
/// keyword arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the arguments of a task",
    note = "use a tuple of at most eight types that serde can read and write, such as `(i64, String)`, \
            or `Kwargs<T>` for a struct; one argument alone is written `(T,)`"
)]
pub trait TaskArgs: Sized + Send + Sync + 'static {
    /// The number of parameters that the declaration must name; `None` for any number.
    const ARITY: Option<usize>;

    /// Decodes the arguments of a call.
    ///
    /// # Errors
    ///
    /// Fails if an argument has another type than its parameter.
    fn from_call(call: BoundArguments<'_>) -> Result<Self, ArgumentError>;

    /// Encodes the arguments as the message body of a task with the parameters `params`.
    ///
    /// # Errors
    ///
    /// Fails if the serializer cannot express an argument.
    fn write_call(
        &self,
        params: &[&str],
        writer: &ArgumentEncoder<'_>,
    ) -> Result<EncodedArguments, EncodeError>;
}

/// A struct whose fields are the parameters of a task. They are sent as keyword arguments, and
/// received from positional and keyword arguments.
///
/// ```
/// use celery_runtime::{Kwargs, Task};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Resize {
///     path: String,
///     width: u32,
/// }
///
/// const RESIZE: Task<Kwargs<Resize>, String> =
///     Task::new("images.resize").params(&["path", "width=640"]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kwargs<T>(pub T);

/// An encoder of arguments for one message, with its serializer and protocol.
#[derive(Clone, Copy, Debug)]
pub struct ArgumentEncoder<'a> {
    serializer: Serializer,
    embed: &'a Embed<'a>,
    v1: Option<&'a TaskHeaders<'a>>,
    with_reprs: bool,
}

/// Encoded arguments: the message body, and the Python `repr`s for protocol 2.
#[derive(Clone, Debug)]
pub struct EncodedArguments {
    pub(crate) body: Vec<u8>,
    pub(crate) argsrepr: String,
    pub(crate) kwargsrepr: String,
}

impl<'a> ArgumentEncoder<'a> {
    /// Creates an encoder for messages of protocol 2.
    pub fn new(serializer: Serializer, embed: &'a Embed<'a>) -> Self {
        Self {
            serializer,
            embed,
            v1: None,
            with_reprs: true,
        }
    }

    /// Converts it to an encoder for messages of protocol 1, whose body also contains the headers.
    #[must_use]
    pub fn v1(self, headers: &'a TaskHeaders<'a>) -> Self {
        Self {
            v1: Some(headers),
            with_reprs: false,
            ..self
        }
    }

    /// Encodes positional arguments (an array) and keyword arguments (a map).
    ///
    /// # Errors
    ///
    /// Fails if the serializer cannot express an argument.
    pub fn write<A, K>(&self, args: &A, kwargs: &K) -> Result<EncodedArguments, EncodeError>
    where
        A: Serialize + ?Sized,
        K: Serialize + ?Sized,
    {
        let body = match self.v1 {
            None => encode_body(self.serializer, args, kwargs, self.embed)?,
            Some(headers) => {
                v1::encode_body(self.serializer, headers, args, kwargs, self.embed, true)?
            }
        };
        let (argsrepr, kwargsrepr) = if self.with_reprs {
            (repr::args(args), repr::kwargs(kwargs))
        } else {
            (String::new(), String::new())
        };
        Ok(EncodedArguments {
            body,
            argsrepr,
            kwargsrepr,
        })
    }
}

impl<T> TaskArgs for Kwargs<T>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    const ARITY: Option<usize> = None;

    fn from_call(call: BoundArguments<'_>) -> Result<Self, ArgumentError> {
        call.into_struct().map(Self)
    }

    fn write_call(
        &self,
        _params: &[&str],
        writer: &ArgumentEncoder<'_>,
    ) -> Result<EncodedArguments, EncodeError> {
        writer.write(&(), &self.0)
    }
}

/// Encodes the elements of a tuple as positional and keyword arguments, for parameters with `*args`
/// or `**kwargs`.
fn write_variadic(
    params: &[&str],
    elements: Vec<Value>,
    writer: &ArgumentEncoder<'_>,
) -> Result<EncodedArguments, EncodeError> {
    let mut args = Vec::new();
    let mut kwargs = Map::new();
    let mut after_args = false;
    for (param, element) in params.iter().zip(elements) {
        match (param.starts_with("**"), param.starts_with('*'), element) {
            (true, _, Value::Map(map)) => kwargs.extend(map),
            (_, true, Value::Array(rest)) => {
                args.extend(rest);
                after_args = true;
            }
            (_, _, single) if after_args => {
                let name = param.split('=').next().unwrap_or_default();
                kwargs.insert(name, single);
            }
            (_, _, single) => args.push(single),
        }
    }
    writer.write(&args, &kwargs)
}

macro_rules! tuple_args {
    ($($count:literal => ($($name:ident),*)),* $(,)?) => {$(
        impl<$($name),*> TaskArgs for ($($name,)*)
        where
            $($name: Serialize + DeserializeOwned + Send + Sync + 'static,)*
        {
            const ARITY: Option<usize> = Some($count);

            #[allow(non_snake_case, unused_mut, unused_variables, reason = "one macro for all arities")]
            fn from_call(mut call: BoundArguments<'_>) -> Result<Self, ArgumentError> {
                $(let $name = call.take()?;)*
                Ok(($($name,)*))
            }

            #[allow(non_snake_case, reason = "the type names double as variable names")]
            fn write_call(
                &self,
                params: &[&str],
                writer: &ArgumentEncoder<'_>,
            ) -> Result<EncodedArguments, EncodeError> {
                if params.iter().any(|param| param.starts_with('*')) {
                    let ($($name,)*) = self;
                    return write_variadic(params, vec![$(Value::from_serialize($name)?),*], writer);
                }
                writer.write(self, &())
            }
        }
    )*};
}

tuple_args! {
    0 => (),
    1 => (A1),
    2 => (A1, A2),
    3 => (A1, A2, A3),
    4 => (A1, A2, A3, A4),
    5 => (A1, A2, A3, A4, A5),
    6 => (A1, A2, A3, A4, A5, A6),
    7 => (A1, A2, A3, A4, A5, A6, A7),
    8 => (A1, A2, A3, A4, A5, A6, A7, A8),
}

/// Returns the encoded arguments of a call, an array and a map, for a signature.
pub(crate) fn arguments_of(
    write: &dyn Fn(&ArgumentEncoder<'_>) -> Result<EncodedArguments, EncodeError>,
) -> Result<(Raw<'static>, Raw<'static>), EncodeError> {
    let embed = Embed::default();
    let call = write(&ArgumentEncoder::new(Serializer::Json, &embed))?;
    let read = || {
        let raw = Raw::read(Serializer::Json, &call.body)?;
        let body = celery_protocol::Body::read(&raw)?;
        Ok((body.args.into_owned(), body.kwargs.into_owned()))
    };
    read().map_err(|error: celery_protocol::DecodeError| EncodeError::new(error.to_string()))
}
