//! The subset of the Redis protocol that starting and inspecting a server needs.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The reply of a Redis server to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Nil: a missing key or an empty result.
    Nil,
    /// An integer.
    Integer(i64),
    /// A status such as `OK`, or a string.
    Data(Vec<u8>),
    /// A list of replies.
    Array(Vec<Self>),
    /// An error with the text of the server.
    Error(String),
}

impl Reply {
    /// Returns the text of a string or status, with invalid UTF-8 replaced, or the digits of an
    /// integer.
    ///
    /// # Panics
    ///
    /// Panics if the reply is of another kind.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Data(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Integer(number) => number.to_string(),
            other => panic!("expected a string from redis, found {other:?}"),
        }
    }

    /// Returns the integer.
    ///
    /// # Panics
    ///
    /// Panics if the reply is of another kind.
    #[must_use]
    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(number) => *number,
            other => panic!("expected an integer from redis, found {other:?}"),
        }
    }

    /// Returns the texts of an array.
    ///
    /// # Panics
    ///
    /// Panics if the reply is not an array of texts.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Array(replies) => replies.iter().map(Self::text).collect(),
            other => panic!("expected an array from redis, found {other:?}"),
        }
    }
}

/// A connection with a timeout for every read and write.
#[derive(Debug)]
pub(super) struct RespConnection {
    stream: BufReader<TcpStream>,
}

impl RespConnection {
    pub(super) fn open(port: u16, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(super) fn command(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request)?;
        read_reply(&mut self.stream)
    }
}

fn read_reply(stream: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let Some(kind) = line.chars().next() else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let rest = &line[kind.len_utf8()..];
    Ok(match kind {
        '+' => Reply::Data(rest.as_bytes().to_vec()),
        '-' => Reply::Error(rest.to_owned()),
        ':' => Reply::Integer(number(rest)?),
        '$' | '*' if rest == "-1" => Reply::Nil,
        '$' => {
            let length = usize::try_from(number(rest)?).map_err(io::Error::other)?;
            let mut data = vec![0; length + 2];
            stream.read_exact(&mut data)?;
            data.truncate(length);
            Reply::Data(data)
        }
        '*' => (0..number(rest)?)
            .map(|_| read_reply(stream))
            .collect::<io::Result<_>>()
            .map(Reply::Array)?,
        _ => {
            return Err(io::Error::other(format!(
                "unknown type of redis reply: {line:?}"
            )));
        }
    })
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> io::Result<Reply> {
        read_reply(&mut bytes)
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        let cases: [(&[u8], Reply); 7] = [
            (b"+PONG\r\n", Reply::Data(b"PONG".to_vec())),
            (b"-ERR no\r\n", Reply::Error("ERR no".to_owned())),
            (b":-12\r\n", Reply::Integer(-12)),
            (b"$-1\r\n", Reply::Nil),
            (b"$4\r\na\r\nb\r\n", Reply::Data(b"a\r\nb".to_vec())),
            (b"*0\r\n", Reply::Array(Vec::new())),
            (
                b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n",
                Reply::Array(vec![
                    Reply::Integer(1),
                    Reply::Array(vec![Reply::Data(b"x".to_vec())]),
                ]),
            ),
        ];
        for (bytes, reply) in cases {
            assert_eq!(read(bytes).unwrap(), reply);
        }
    }

    #[test]
    fn truncated_or_foreign_reply_is_an_error() {
        for bytes in [&b""[..], b"$5\r\nab", b"*2\r\n:1\r\n", b"HTTP/1.1 200\r\n"] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
