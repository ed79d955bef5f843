//! Every decompressor respects its limit, and decompression restores the
//! compressed bytes.

#![no_main]

use celery_protocol::Compression;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    for compression in Compression::all() {
        if let Ok(bytes) = compression.decompress(data, LIMIT) {
            assert!(bytes.len() <= LIMIT);
        }
        let compressed = compression.compress(data).expect("bytes are compressed");
        let bytes = compression.decompress(&compressed, data.len());
        assert_eq!(bytes.as_deref(), Ok(data), "{compression:?}");
    }
});
