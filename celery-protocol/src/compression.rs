//! Content compressions under their names in Celery.

use std::io::{self, Read, Write};

use crate::error::{DecodeError, DecodeErrorKind, EncodeError};

/// A compression of the serialized body of a message.
///
/// Every variant exists with every combination of cargo features. Using a
/// compression whose feature is off returns an error that names the feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// `zlib` or `gzip`, both of which are a zlib stream in Celery.
    Zlib,
    /// `bzip2` or `bzip`.
    Bzip2,
    /// `lzma` or `xz`, which is the xz container.
    Lzma,
    /// `brotli`.
    Brotli,
    /// `zstd` or `zstandard`.
    Zstd,
}

/// The names of one compression. The table has one row per compression, in the
/// order of the enum.
struct CompressionRow {
    compression: Compression,
    names: &'static [&'static str],
    content_type: &'static str,
}

static TABLE: [CompressionRow; 5] = [
    CompressionRow {
        compression: Compression::Zlib,
        names: &["zlib", "gzip"],
        content_type: "application/x-gzip",
    },
    CompressionRow {
        compression: Compression::Bzip2,
        names: &["bzip2", "bzip"],
        content_type: "application/x-bz2",
    },
    CompressionRow {
        compression: Compression::Lzma,
        names: &["lzma", "xz"],
        content_type: "application/x-lzma",
    },
    CompressionRow {
        compression: Compression::Brotli,
        names: &["brotli"],
        content_type: "application/x-brotli",
    },
    CompressionRow {
        compression: Compression::Zstd,
        names: &["zstd", "zstandard"],
        content_type: "application/zstd",
    },
];

impl Compression {
    /// Returns all compressions.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.compression)
    }

    /// Finds a compression by its name in Celery's settings.
    pub fn from_name(name: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.names.contains(&name))?;
        Some(row.compression)
    }

    /// Finds a compression by the `compression` header of a message.
    ///
    /// The header contains a content type. Names are also accepted, as in
    /// kombu.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.content_type == content_type);
        row.map(|row| row.compression)
            .or_else(|| Self::from_name(content_type))
    }

    /// Returns the name in Celery's settings.
    pub fn name(self) -> &'static str {
        self.row().names[0]
    }

    /// Returns the value of the `compression` header of a message.
    pub fn content_type(self) -> &'static str {
        self.row().content_type
    }

    /// Compresses bytes.
    ///
    /// # Errors
    ///
    /// Fails if the feature of the compression is off.
    pub fn compress(self, bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Zlib => zlib::compress(bytes),
            Self::Bzip2 => bzip2::compress(bytes),
            Self::Lzma => lzma::compress(bytes),
            Self::Brotli => brotli::compress(bytes),
            Self::Zstd => zstd::compress(bytes),
        }
    }

    /// Decompresses bytes to at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails if the result has more than `limit` bytes
    /// ([`DecodeError::is_too_large`]), if the bytes are malformed, truncated
    /// or followed by others, or if the feature of the compression is off.
    /// Decompression stops after `limit` bytes, so a decompression bomb does
    /// not exhaust the memory.
    pub fn decompress(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        match self {
            Self::Zlib => zlib::decompress(bytes, limit),
            Self::Bzip2 => bzip2::decompress(bytes, limit),
            Self::Lzma => lzma::decompress(bytes, limit),
            Self::Brotli => brotli::decompress(bytes, limit),
            Self::Zstd => zstd::decompress(bytes, limit),
        }
        .map_err(|error| error.in_content_type(self.content_type()))
    }

    fn row(self) -> &'static CompressionRow {
        &TABLE[self as usize]
    }
}

/// The binary logarithm of the memory that a decoder may use for its window,
/// regardless of what a message requests.
#[cfg(any(feature = "lzma", feature = "zstd"))]
const MAX_WINDOW_LOG: u32 = 27;

/// Reads the whole output of a decoder, which may have at most `limit` bytes.
#[allow(dead_code, reason = "unused when every compression is off")]
fn read_limited(decoder: &mut impl Read, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let mut bounded = decoder.take((limit as u64).saturating_add(1));
    bounded
        .read_to_end(&mut out)
        .map_err(|error| stream_error(&error))?;
    if out.len() > limit {
        return Err(DecodeErrorKind::TooLarge { limit }.into());
    }
    Ok(out)
}

/// Returns an error if bytes follow the compressed stream.
#[allow(dead_code, reason = "unused when every compression is off")]
fn expect_no_trailing_bytes(rest: &[u8]) -> Result<(), DecodeError> {
    match rest.len() {
        0 => Ok(()),
        more => Err(DecodeError::malformed(format!(
            "{more} bytes follow the compressed stream"
        ))),
    }
}

#[allow(dead_code, reason = "unused when every compression is off")]
fn stream_error(error: &io::Error) -> DecodeError {
    DecodeError::malformed(format!("the compressed stream is malformed: {error}"))
}

#[allow(dead_code, reason = "unused when every compression is off")]
fn compression_error(error: &io::Error) -> EncodeError {
    EncodeError::new(format!("compression failed: {error}"))
}

/// Writes all bytes to an encoder and returns the encoder.
#[allow(dead_code, reason = "unused when every compression is off")]
fn write_all_to<W: Write>(mut encoder: W, bytes: &[u8]) -> Result<W, EncodeError> {
    encoder
        .write_all(bytes)
        .map_err(|error| compression_error(&error))?;
    Ok(encoder)
}

/// Defines the module of a compression with its two functions. If the feature
/// is off, both return an error that names it.
macro_rules! compression {
    ($module:ident, $feature:literal, $what:literal, {$($body:tt)*}) => {
        #[cfg(feature = $feature)]
        mod $module {
            use super::*;

            $($body)*
        }

        #[cfg(not(feature = $feature))]
        mod $module {
            use super::*;
            use crate::codec::{decode_feature_off, encode_feature_off};

            pub(super) fn compress(_bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
                Err(encode_feature_off($what, $feature))
            }

            pub(super) fn decompress(_bytes: &[u8], _limit: usize) -> Result<Vec<u8>, DecodeError> {
                Err(decode_feature_off($what, $feature))
            }
        }
    };
}

compression!(zlib, "zlib", "the compression zlib", {
    use flate2::bufread::ZlibDecoder;
    use flate2::write::ZlibEncoder;

    pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        let encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        write_all_to(encoder, bytes)?
            .finish()
            .map_err(|error| compression_error(&error))
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = ZlibDecoder::new(bytes);
        let out = read_limited(&mut decoder, limit)?;
        expect_no_trailing_bytes(decoder.into_inner()).map(|()| out)
    }
});

compression!(bzip2, "bzip2", "the compression bzip2", {
    use ::bzip2::bufread::BzDecoder;
    use ::bzip2::write::BzEncoder;

    pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        let encoder = BzEncoder::new(Vec::new(), ::bzip2::Compression::default());
        write_all_to(encoder, bytes)?
            .finish()
            .map_err(|error| compression_error(&error))
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = BzDecoder::new(bytes);
        let out = read_limited(&mut decoder, limit)?;
        expect_no_trailing_bytes(decoder.into_inner()).map(|()| out)
    }
});

compression!(lzma, "lzma", "the compression lzma", {
    use liblzma::bufread::XzDecoder;
    use liblzma::stream::Stream;
    use liblzma::write::XzEncoder;

    pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        // Python uses level 6.
        let encoder = XzEncoder::new(Vec::new(), 6);
        write_all_to(encoder, bytes)?
            .finish()
            .map_err(|error| compression_error(&error))
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let stream = Stream::new_stream_decoder(1 << MAX_WINDOW_LOG, 0)
            .map_err(|error| stream_error(&error.into()))?;
        let mut decoder = XzDecoder::new_stream(bytes, stream);
        let out = read_limited(&mut decoder, limit)?;
        expect_no_trailing_bytes(decoder.into_inner()).map(|()| out)
    }
});

compression!(brotli, "brotli", "the compression brotli", {
    /// Python uses 11, which compresses a few percent better and takes many
    /// times longer.
    const QUALITY: i32 = 5;

    pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        let parameters = ::brotli::enc::BrotliEncoderParams {
            quality: QUALITY,
            size_hint: bytes.len(),
            ..Default::default()
        };
        let mut out = Vec::new();
        ::brotli::BrotliCompress(&mut &bytes[..], &mut out, &parameters)
            .map_err(|error| compression_error(&error))?;
        Ok(out)
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut rest = bytes;
        let mut decoder = ::brotli::Decompressor::new(&mut rest, 4096);
        read_limited(&mut decoder, limit)
    }
});

compression!(zstd, "zstd", "the compression zstd", {
    use ::zstd::stream::read::Decoder;

    pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>, EncodeError> {
        ::zstd::stream::encode_all(bytes, ::zstd::DEFAULT_COMPRESSION_LEVEL)
            .map_err(|error| compression_error(&error))
    }

    pub(super) fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::with_buffer(bytes)
            .map_err(|error| stream_error(&error))?
            .single_frame();
        decoder
            .window_log_max(MAX_WINDOW_LOG)
            .map_err(|error| stream_error(&error))?;
        let out = read_limited(&mut decoder, limit)?;
        expect_no_trailing_bytes(decoder.finish()).map(|()| out)
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_table_has_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.compression as usize, index);
            assert_eq!(
                Compression::from_content_type(row.content_type),
                Some(row.compression)
            );
            for name in row.names {
                assert_eq!(Compression::from_name(name), Some(row.compression));
            }
        }
        assert_eq!(Compression::from_name("rar"), None);
    }
}
