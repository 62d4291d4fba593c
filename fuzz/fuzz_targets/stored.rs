//! Stored records, cursors and queries: any bytes are a record or an error, and a record, however
//! odd its tree, becomes rows in every format. An input is a record's payload, or its JSON, and the
//! query of a URL.

#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder::trace::{
    ExportOptions, Exporter, Format, LeafOutcome, Made, OutcomeUpdate, Target, TraceRecord,
    decode_stored, infer_values, render,
};
use ponder_fuzz::{mutate, parts, words::Words};

/// Zstandard's magic number: the payload is given as it would lie in the store.
const PACKED: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Rows that are made of one record in one format.
const MAX_ROWS: usize = 2000;
const TARGETS: [Target; 2] = [Target::RestMcts, Target::Mean];

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::of_seeds("stored", 0));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, 0, &WORDS)
});

fn packed(json: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.write_all(json).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

/// Rows in every format: a record that is no tree gives none, or is one row as it is.
fn export(trace: &TraceRecord) {
    for format in Format::ALL {
        let options = ExportOptions {
            deduplicate: true,
            ..ExportOptions::default()
        };
        let mut exporter = Exporter::new(format, options);
        let mut pending = exporter.begin(trace.clone());
        for _ in 0..MAX_ROWS {
            if exporter.next(&mut pending) == Made::End {
                break;
            }
        }
    }
}

/// An oracle's word on everything that has an end.
fn word_on(trace: &TraceRecord) -> OutcomeUpdate {
    let ends = trace
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.is_whole());
    let leaves = ends.map(|(node, _)| LeafOutcome {
        node,
        outcome: (node % 2) as f64,
    });
    OutcomeUpdate {
        outcome: trace.best().map(|_| 1.0),
        leaves: leaves.collect(),
        correction: Some("right".to_owned()),
    }
}

fuzz_target!(|data: &[u8]| {
    if data.starts_with(&PACKED) {
        let _ = decode_stored(data);
        return;
    }
    let [json, query] = parts::first(data);
    if let Some(query) = parts::text(query) {
        let _ = ponder::api::check_query(query);
    }
    let Ok(mut trace) = decode_stored(&packed(json)) else {
        return;
    };
    export(&trace);
    if trace.is_tree() {
        for target in TARGETS {
            assert_eq!(infer_values(&trace, target).len(), trace.nodes.len());
        }
        let _ = render(&trace);
        let update = word_on(&trace);
        let word = trace.apply(&update);
        assert!(word.is_ok(), "every end takes an outcome: {word:?}");
        export(&trace);
    }
    trace.redact();
    export(&trace);
});
