//! The Celery wire protocol, without any I/O.
//!
//! This crate turns the bytes of Celery's messages into types and back: task
//! messages of protocol 2 and 1, the serializers and compressions, kombu's
//! envelope, signatures and result documents. It opens no connection, spawns no
//! task, reads no clock and generates no random number: ids and times are
//! arguments. Synchronous programs, tests and other runtimes can therefore use
//! it as well as the crates of this workspace.
//!
//! Decoding is lazy and borrows from the message. A worker reads the
//! [headers](TaskHeaders) and decodes each argument only when the type of the
//! parameter is known:
//!
//! ```
//! use bytes::Bytes;
//! use celery_protocol::{Accept, Embed, Message, Serializer, TaskHeaders, encode_body, kombu};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A sender.
//! let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default())?;
//! let message = Message::task(TaskHeaders::new("tasks.add", "id-1"), Serializer::Json, body);
//! let route = kombu::EnvelopeRoute { exchange: "", routing_key: "celery" };
//! let envelope = kombu::encode(&message, route, "tag-1")?;
//!
//! // A worker.
//! let message = kombu::decode(&Bytes::from(envelope))?;
//! let payload = message.payload(&Accept::json(), 1 << 20)?;
//! let (headers, body) = payload.task()?;
//! assert_eq!(headers.task, "tasks.add");
//! let arguments = body.arguments()?;
//! assert_eq!(arguments.positional[0].decode::<i64>()?, 2);
//! # Ok(())
//! # }
//! ```
//!
//! The types to read first are [`Message`] and [`Raw`], a value that has not been
//! decoded.
//!
//! # Features
//!
//! JSON is always available. `msgpack` and `yaml` add serializers; `zlib`,
//! `bzip2`, `lzma`, `brotli` and `zstd` add compressions. The enum variants
//! exist with every combination of features; using one whose feature is off
//! returns an error that names the feature to enable. Pickle is recognised by
//! its content type and never decoded.

mod body;
mod codec;
mod compression;
mod control;
mod cow_str;
mod embed;
mod error;
mod event;
mod exception;
mod headers;
pub mod kombu;
mod message;
mod payload;
mod raw;
pub mod repr;
mod result;
mod result_tree;
mod state;
mod task_headers;
pub mod time;
pub mod v1;
mod value;
mod wire_signature;

pub use crate::body::{Arguments, Body, encode_body};
pub use crate::codec::{Accept, Serializer};
pub use crate::compression::Compression;
pub use crate::control::{ControlReply, ControlRequest, ReplyAddress};
pub use crate::embed::Embed;
pub use crate::error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};
pub use crate::event::Event;
pub use crate::exception::Exception;
pub use crate::headers::Headers;
pub use crate::message::{DeliveryInfo, Message, Properties};
pub use crate::payload::Payload;
pub use crate::raw::{Elements, Entries, Raw};
pub use crate::result::{ResultDocument, compress_document, decompress_document};
pub use crate::result_tree::ResultTree;
pub use crate::state::State;
pub use crate::task_headers::{TaskHeaders, TimeLimits};
pub use crate::value::{BigInt, Extended, ExtendedKind, Map, MapIter, Value, ValueDeserializer};
pub use crate::wire_signature::WireSignature;
