//! Records as they lie in the file: JSON under zstd, of bounded size.

use std::io::Read;

use serde::Serialize;

use super::StoreError;
use crate::trace::record::TraceRecord;

/// A good ratio for its time: a trace takes about a millisecond a megabyte.
const COMPRESSION_LEVEL: i32 = 3;
/// Longest record, as JSON. Some bytes of zstd can stand for any number of others: no more than
/// this are ever unpacked.
pub(super) const MAX_RECORD_BYTES: usize = 256 << 20;

/// A record's bytes for the file.
pub(super) fn encode(record: &TraceRecord) -> Result<Vec<u8>, StoreError> {
    pack(record)
}

/// Anything's bytes for the file.
pub(super) fn pack(record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let failed = |error: &dyn std::fmt::Display| StoreError::Failed(error.to_string());
    let json = serde_json::to_vec(record).map_err(|error| failed(&error))?;
    if json.len() > MAX_RECORD_BYTES {
        return Err(StoreError::TooLarge);
    }
    zstd::bulk::compress(&json, COMPRESSION_LEVEL).map_err(|error| failed(&error))
}

/// The JSON of a stored record, or what is wrong with it.
pub(super) fn unpack(payload: &[u8], max_bytes: usize) -> Result<Vec<u8>, String> {
    let decoder = zstd::stream::read::Decoder::with_buffer(payload);
    let decoder = decoder.map_err(|error| error.to_string())?;
    let mut json = Vec::new();
    let most = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let read = decoder.take(most.saturating_add(1)).read_to_end(&mut json);
    read.map_err(|error| error.to_string())?;
    match json.len() > max_bytes {
        true => Err(format!("it unpacks to more than {max_bytes} bytes")),
        false => Ok(json),
    }
}

/// A stored record, or what is wrong with it. Takes any bytes.
pub(super) fn decode(payload: &[u8]) -> Result<TraceRecord, String> {
    let json = unpack(payload, MAX_RECORD_BYTES)?;
    let record: TraceRecord = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    // Whoever walks it relies on that.
    match record.is_tree() {
        true => Ok(record),
        false => Err("its nodes are not a tree".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{node, trace_of};

    #[test]
    fn records_come_back() {
        let record = trace_of(vec![node(None, "", None), node(Some(0), "a", Some("stop"))]);
        assert_eq!(decode(&encode(&record).unwrap()).unwrap(), record);
    }

    #[test]
    fn no_more_is_unpacked_than_allowed() {
        // A million bytes in a few dozen.
        let bomb = zstd::bulk::compress(&vec![b' '; 1 << 20], COMPRESSION_LEVEL).unwrap();
        assert!(bomb.len() < 1 << 10);
        assert!(
            unpack(&bomb, (1 << 20) - 1)
                .unwrap_err()
                .contains("more than")
        );
        assert_eq!(unpack(&bomb, 1 << 20).unwrap().len(), 1 << 20);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&zstd::bulk::compress(&bytes, COMPRESSION_LEVEL).unwrap());
        }
    }
}
