//! How words travel between a worker and its children: a head in JSON, and
//! byte strings beside it that are copied as they are. Pure.
//!
//! ```text
//! number of parts (u32) | length of each part (u32 each) | the parts
//! ```

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A word and what it carries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame<H> {
    pub(crate) head: H,
    pub(crate) blobs: Vec<Bytes>,
}

/// Bytes that are no frame, or a frame that cannot be sent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {parts} parts, where 1 to {PARTS} are possible")]
    Parts { parts: usize },
    #[error("a frame of {length} bytes, where {LIMIT} are the most")]
    TooLarge { length: usize },
    #[error("a frame whose head cannot be read: {0}")]
    Head(String),
    #[error("a frame with a part missing")]
    Missing,
}

/// Most parts of a frame, the head included.
const PARTS: usize = 4;

/// Most bytes of a frame's parts together.
const LIMIT: usize = 1 << 30;

/// The length of a number.
const NUMBER: usize = size_of::<u32>();

impl<H> Frame<H> {
    pub(crate) fn new(head: H) -> Self {
        Self {
            head,
            blobs: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, blob: impl Into<Bytes>) -> Self {
        self.blobs.push(blob.into());
        self
    }

    /// One of the byte strings beside the head.
    pub(crate) fn blob(&self, index: usize) -> Result<&Bytes, FrameError> {
        self.blobs.get(index).ok_or(FrameError::Missing)
    }
}

impl<H: Serialize> Frame<H> {
    /// The bytes to send.
    pub(crate) fn write(&self) -> Result<Vec<u8>, FrameError> {
        let head =
            serde_json::to_vec(&self.head).map_err(|error| FrameError::Head(error.to_string()))?;
        let parts = || std::iter::once(&head[..]).chain(self.blobs.iter().map(|blob| &blob[..]));
        let length = parts().map(<[u8]>::len).sum();
        let count = check(parts().count(), length)?;
        let mut out = Vec::with_capacity(NUMBER * (1 + parts().count()) + length);
        out.extend_from_slice(&count.to_le_bytes());
        for part in parts() {
            // As the sum, each is within the limit, which has 31 bits.
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
        }
        parts().for_each(|part| out.extend_from_slice(part));
        Ok(out)
    }
}

impl<H: DeserializeOwned> Frame<H> {
    /// Takes the first frame out of the bytes that have arrived; `None` when
    /// it is not there as a whole.
    pub(crate) fn take(arrived: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(count) = number(arrived, 0) else {
            return Ok(None);
        };
        check(count, 0)?;
        let lengths: Option<Vec<usize>> = (1..=count).map(|index| number(arrived, index)).collect();
        let Some(lengths) = lengths else {
            return Ok(None);
        };
        let length = lengths.iter().sum();
        check(count, length)?;
        let prefix = NUMBER * (1 + count);
        if arrived.len() < prefix + length {
            // So far only: nobody can make us reserve what he does not send.
            arrived.reserve((prefix + length - arrived.len()).min(STEP));
            return Ok(None);
        }
        arrived.advance(prefix);
        let mut parts = lengths.into_iter().map(|length| arrived.split_to(length));
        let head = parts.next().ok_or(FrameError::Missing)?;
        let blobs = parts.map(BytesMut::freeze).collect();
        let head =
            serde_json::from_slice(&head).map_err(|error| FrameError::Head(error.to_string()))?;
        Ok(Some(Self { head, blobs }))
    }
}

/// How much room is made at once for a frame that arrives.
const STEP: usize = 1 << 20;

fn check(parts: usize, length: usize) -> Result<u32, FrameError> {
    if !(1..=PARTS).contains(&parts) {
        return Err(FrameError::Parts { parts });
    }
    if length > LIMIT {
        return Err(FrameError::TooLarge { length });
    }
    Ok(parts as u32)
}

fn number(bytes: &[u8], index: usize) -> Option<usize> {
    let number = bytes.get(NUMBER * index..)?.first_chunk::<NUMBER>()?;
    usize::try_from(u32::from_le_bytes(*number)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(bytes: &[u8]) -> Result<Option<Frame<String>>, FrameError> {
        Frame::take(&mut BytesMut::from(bytes))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(head: String, one: Vec<u8>, other: Vec<u8>, cut: u16) {
            let frame = Frame::new(head).with(one).with(other);
            let bytes = frame.write().unwrap();
            let cut = usize::from(cut) % bytes.len();
            prop_assert_eq!(take(&bytes[..cut]), Ok(None));

            let mut arrived = BytesMut::from(&bytes[..]);
            arrived.extend_from_slice(&bytes);
            prop_assert_eq!(Frame::take(&mut arrived), Ok(Some(frame.clone())));
            prop_assert_eq!(Frame::take(&mut arrived), Ok(Some(frame)));
            prop_assert!(arrived.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = take(&bytes);
        }
    }

    #[test]
    fn garbage_is_an_error_and_takes_no_memory() {
        assert_eq!(take(&[0; 4]), Err(FrameError::Parts { parts: 0 }));
        let text = u32::from_le_bytes(*b"read") as usize;
        assert_eq!(take(b"ready\n"), Err(FrameError::Parts { parts: text }));

        let mut large = BytesMut::new();
        large.extend_from_slice(&1_u32.to_le_bytes());
        large.extend_from_slice(&u32::MAX.to_le_bytes());
        let length = u32::MAX as usize;
        assert_eq!(take(&large), Err(FrameError::TooLarge { length }));

        let mut promised = BytesMut::new();
        promised.extend_from_slice(&1_u32.to_le_bytes());
        promised.extend_from_slice(&(LIMIT as u32).to_le_bytes());
        assert_eq!(Frame::<String>::take(&mut promised), Ok(None));
        assert!(promised.capacity() < 2 * STEP);

        let mut broken = Frame::new("x").write().unwrap();
        *broken.last_mut().unwrap() = b'x';
        assert!(matches!(take(&broken), Err(FrameError::Head(_))));
    }

    #[test]
    fn a_part_that_is_missing_is_an_error() {
        let frame = Frame::new(1).with("one");
        assert_eq!(frame.blob(0).unwrap(), "one");
        assert_eq!(frame.blob(1), Err(FrameError::Missing));
    }
}
