//! The frames between a worker and its child processes: a head in JSON and byte
//! strings that are copied unchanged. Pure.
//!
//! ```text
//! number of parts (u32) | length of each part (u32 each) | the parts
//! ```

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message and its byte strings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame<H> {
    pub(crate) head: H,
    pub(crate) blobs: Vec<Bytes>,
}

/// An error of encoding or decoding a frame.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {parts} parts; it must have 1 to {MAX_PARTS}")]
    Parts { parts: usize },
    #[error("a frame of {length} bytes; the limit is {MAX_BYTES}")]
    TooLarge { length: usize },
    #[error("a frame with an invalid head: {0}")]
    Head(String),
    #[error("a frame with a missing part")]
    Missing,
}

/// Most parts of a frame, including the head.
const MAX_PARTS: usize = 4;

/// Most bytes in all parts of a frame together.
const MAX_BYTES: usize = 1 << 30;

/// The size of a count or length in bytes.
const NUMBER_SIZE: usize = size_of::<u32>();

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

    /// Returns the byte string at `index`; the head does not count.
    pub(crate) fn blob(&self, index: usize) -> Result<&Bytes, FrameError> {
        self.blobs.get(index).ok_or(FrameError::Missing)
    }
}

impl<H: Serialize> Frame<H> {
    /// Encodes the frame.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let head =
            serde_json::to_vec(&self.head).map_err(|error| FrameError::Head(error.to_string()))?;
        let parts = || std::iter::once(&head[..]).chain(self.blobs.iter().map(|blob| &blob[..]));
        let length = parts().map(<[u8]>::len).sum();
        let count = check(parts().count(), length)?;
        let mut out = Vec::with_capacity(NUMBER_SIZE * (1 + parts().count()) + length);
        out.extend_from_slice(&count.to_le_bytes());
        for part in parts() {
            // Fits, since the sum is at most `MAX_BYTES`, which has 31 bits.
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
        }
        parts().for_each(|part| out.extend_from_slice(part));
        Ok(out)
    }
}

impl<H: DeserializeOwned> Frame<H> {
    /// Removes the first frame from the buffer and decodes it; `None` if it is
    /// incomplete.
    pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(count) = number(buffer, 0) else {
            return Ok(None);
        };
        check(count, 0)?;
        let lengths: Option<Vec<usize>> = (1..=count).map(|index| number(buffer, index)).collect();
        let Some(lengths) = lengths else {
            return Ok(None);
        };
        let length = lengths.iter().sum();
        check(count, length)?;
        let prefix = NUMBER_SIZE * (1 + count);
        if buffer.len() < prefix + length {
            // Reserved in steps, so that a frame with a large length in its
            // prefix does not allocate memory for bytes that are never sent.
            buffer.reserve((prefix + length - buffer.len()).min(RESERVE_STEP));
            return Ok(None);
        }
        buffer.advance(prefix);
        let mut parts = lengths.into_iter().map(|length| buffer.split_to(length));
        let head = parts.next().ok_or(FrameError::Missing)?;
        let blobs = parts.map(BytesMut::freeze).collect();
        let head =
            serde_json::from_slice(&head).map_err(|error| FrameError::Head(error.to_string()))?;
        Ok(Some(Self { head, blobs }))
    }
}

/// Most bytes that are reserved at a time for an incomplete frame.
const RESERVE_STEP: usize = 1 << 20;

fn check(parts: usize, length: usize) -> Result<u32, FrameError> {
    if !(1..=MAX_PARTS).contains(&parts) {
        return Err(FrameError::Parts { parts });
    }
    if length > MAX_BYTES {
        return Err(FrameError::TooLarge { length });
    }
    Ok(parts as u32)
}

fn number(bytes: &[u8], index: usize) -> Option<usize> {
    let number = bytes
        .get(NUMBER_SIZE * index..)?
        .first_chunk::<NUMBER_SIZE>()?;
    usize::try_from(u32::from_le_bytes(*number)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Option<Frame<String>>, FrameError> {
        Frame::decode(&mut BytesMut::from(bytes))
    }

    proptest! {
        #[test]
        fn encoded_frame_is_decoded(head: String, one: Vec<u8>, other: Vec<u8>, cut: u16) {
            let frame = Frame::new(head).with(one).with(other);
            let bytes = frame.encode().unwrap();
            let cut = usize::from(cut) % bytes.len();
            prop_assert_eq!(decode(&bytes[..cut]), Ok(None));

            let mut buffer = BytesMut::from(&bytes[..]);
            buffer.extend_from_slice(&bytes);
            prop_assert_eq!(Frame::decode(&mut buffer), Ok(Some(frame.clone())));
            prop_assert_eq!(Frame::decode(&mut buffer), Ok(Some(frame)));
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn invalid_frame_fails_without_allocating() {
        assert_eq!(decode(&[0; 4]), Err(FrameError::Parts { parts: 0 }));
        let text = u32::from_le_bytes(*b"read") as usize;
        assert_eq!(decode(b"ready\n"), Err(FrameError::Parts { parts: text }));

        let mut large = BytesMut::new();
        large.extend_from_slice(&1_u32.to_le_bytes());
        large.extend_from_slice(&u32::MAX.to_le_bytes());
        let length = u32::MAX as usize;
        assert_eq!(decode(&large), Err(FrameError::TooLarge { length }));

        let mut promised = BytesMut::new();
        promised.extend_from_slice(&1_u32.to_le_bytes());
        promised.extend_from_slice(&(MAX_BYTES as u32).to_le_bytes());
        assert_eq!(Frame::<String>::decode(&mut promised), Ok(None));
        assert!(promised.capacity() < 2 * RESERVE_STEP);

        let mut broken = Frame::new("x").encode().unwrap();
        *broken.last_mut().unwrap() = b'x';
        assert!(matches!(decode(&broken), Err(FrameError::Head(_))));
    }

    #[test]
    fn missing_part_is_an_error() {
        let frame = Frame::new(1).with("one");
        assert_eq!(frame.blob(0).unwrap(), "one");
        assert_eq!(frame.blob(1), Err(FrameError::Missing));
    }
}
