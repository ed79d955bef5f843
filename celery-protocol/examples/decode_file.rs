//! Prints the tasks in a file that holds one kombu envelope per line, such as
//! `redis-cli --raw LRANGE celery 0 -1 > messages.txt` writes.
//!
//! ```text
//! cargo run -p celery-protocol --all-features --example decode_file -- messages.txt
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;

use bytes::Bytes;
use celery_protocol::{Accept, DecodeError, Serializer, kombu, repr};

/// The maximum size of a decompressed body; a larger one is an error.
const LIMIT: usize = 64 << 20;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(path) = std::env::args_os().nth(1) else {
        return Err("expected the path of a file with one envelope per line".into());
    };
    let mut failed = false;
    for (number, line) in BufReader::new(File::open(path)?).split(b'\n').enumerate() {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match describe(&Bytes::from(line)) {
            Ok(text) => println!("{}: {text}", number + 1),
            Err(error) => {
                println!("{}: {error}", number + 1);
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Returns task, id and arguments of a message on one line.
fn describe(line: &Bytes) -> Result<String, DecodeError> {
    let message = kombu::decode(line)?;
    let accept = Accept::of([Serializer::Json, Serializer::MsgPack, Serializer::Yaml]);
    let payload = message.payload(&accept, LIMIT)?;
    let (headers, body) = payload.task()?;
    let args = repr::args(&body.args.to_value()?);
    let kwargs = repr::kwargs(&body.kwargs.to_value()?);
    Ok(format!("{} {} {args} {kwargs}", headers.task, headers.id))
}
