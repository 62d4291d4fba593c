//! Rows of whole traces, in all formats.

use super::*;
use crate::trace::testing::{chain, node, thread_time, trace_of};
use crate::trace::{InsertedRecord, NodeRecord};

/// Two right answers.
fn trace() -> TraceRecord {
    let answer = |text, value| NodeRecord {
        outcome: Some(1.0),
        token_ids: vec![1, 2],
        logprob: -1.0,
        value,
        visit_count: 3,
        ..node(Some(0), text, Some("stop"))
    };
    trace_of(vec![
        node(None, "", None),
        answer("one two three four five", 0.5),
        answer("one two three four six", 0.25),
    ])
}

fn exporter(options: ExportOptions) -> Exporter {
    Exporter::new(Format::Sft, options)
}

#[test]
fn rows_end_with_the_shared_fields() {
    let rows = exporter(ExportOptions::default()).rows(&trace());
    assert_eq!(rows.len(), 2);
    let expected = concat!(
        r#"{"messages":[{"role":"user","content":"question"},"#,
        r#"{"role":"assistant","content":"one two three four six"}],"#,
        r#""inserted":[],"trace_id":"trace-1","revision":1,"model":"model","created":0,"tags":[],"#,
        r#""strategy":"best_of_n","outcome":1.0,"value":0.25,"visits":3,"#,
        r#""mean_logprob":-0.5,"num_tokens":2,"novelty":0.5}"#
    );
    assert_eq!(serde_json::to_string(&rows[1]).unwrap(), expected);
    assert_eq!(rows[0]["novelty"], 1.0);
}

#[test]
fn no_row_comes_twice_unless_asked_for() {
    let mut exporter = exporter(ExportOptions::default());
    assert_eq!(exporter.rows(&trace()).len(), 2);
    let again = TraceRecord {
        id: "trace-2".to_owned(),
        revision: 2,
        correction: Some("seven".to_owned()),
        ..trace()
    };
    let rows = exporter.rows(&again);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["messages"][1]["content"], "seven");
    for (field, expected) in [
        ("outcome", json!(1.0)),
        ("value", json!(1.0)),
        ("visits", json!(null)),
        ("mean_logprob", json!(null)),
        ("num_tokens", json!(null)),
    ] {
        assert_eq!(rows[0][field], expected, "{field}");
    }
    let mut exporter = self::exporter(ExportOptions {
        deduplicate: false,
        ..ExportOptions::default()
    });
    exporter.rows(&trace());
    let rows = exporter.rows(&trace());
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["novelty"], 0.0);
}

#[test]
fn a_prompt_has_no_more_rows_than_asked_for() {
    let mut exporter = exporter(ExportOptions {
        max_per_prompt: Some(1),
        deduplicate: false,
        ..ExportOptions::default()
    });
    assert_eq!(exporter.rows(&trace()).len(), 1);
    assert_eq!(exporter.rows(&trace()).len(), 0);
    let other = TraceRecord {
        request: json!({"prompt": "other"}),
        ..trace()
    };
    assert_eq!(exporter.rows(&other).len(), 1);
    let unknown = TraceRecord {
        request: Value::Null,
        ..trace()
    };
    assert_eq!(exporter.rows(&unknown).len(), 1);
}

#[test]
fn the_oracle_speaks_of_the_chosen_answer() {
    let mut trace = trace();
    trace.outcome = Some(1.0);
    trace.nodes[1].outcome = None;
    trace.nodes[2].outcome = Some(0.0);
    let rows = exporter(ExportOptions::default()).rows(&trace);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["outcome"], 1.0);
    // Of nothing when there is no such node.
    trace.chosen = vec![9];
    assert!(exporter(ExportOptions::default()).rows(&trace).is_empty());
}

#[test]
fn redacted_traces_are_only_trees() {
    let mut trace = trace();
    trace.redact();
    for format in Format::ALL {
        let rows = Exporter::new(format, ExportOptions::default()).rows(&trace);
        assert_eq!(
            rows.len(),
            usize::from(format == Format::Tree),
            "{format:?}"
        );
    }
}

#[test]
fn trees_are_the_records() {
    let mut exporter = Exporter::new(Format::Tree, ExportOptions::default());
    for _ in 0..2 {
        let rows = exporter.rows(&trace());
        let read: TraceRecord = serde_json::from_value(json!(rows[0])).unwrap();
        assert_eq!(read, trace());
    }
}

/// A chain of many steps, with a wrong answer beside each: what is written once is linear in it.
#[test]
fn deep_trees_are_walked_in_linear_time() {
    const NUM_STEPS: usize = 60_000;
    let mut trace = chain(NUM_STEPS, "step\n");
    trace.nodes[NUM_STEPS].outcome = Some(1.0);
    trace.chosen = vec![NUM_STEPS];
    let started = thread_time();
    for (format, num_rows) in [
        (Format::Tree, 1),
        (Format::Sft, 1),
        (Format::StepValues, 1),
        (Format::Preferences, 0),
        (Format::Linearised, 1),
        // One group, without variance.
        (Format::Groups, 1),
    ] {
        let rows = Exporter::new(format, ExportOptions::default()).rows(&trace);
        assert_eq!(rows.len(), num_rows, "{format:?}");
        let bytes = serde_json::to_vec(&rows).unwrap().len();
        assert!(bytes < NUM_STEPS * 400, "{format:?}: {bytes}");
    }
    for id in 0..NUM_STEPS - 1 {
        trace.nodes.push(NodeRecord {
            outcome: Some(0.0),
            ..node(Some(id), "wrong", Some("stop"))
        });
    }
    let rows = Exporter::new(Format::Linearised, ExportOptions::default()).rows(&trace);
    assert_eq!(rows.len(), 2);
    let rows = Exporter::new(Format::Sft, ExportOptions::default()).rows(&trace);
    assert_eq!(rows.len(), 1);
    // Seconds where the square of the steps would be hours.
    let took = thread_time() - started;
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn short_texts_are_one_ngram() {
    let mut exporter = exporter(ExportOptions::default());
    assert_eq!(exporter.novelty(" \n"), 0.0);
    assert_eq!(exporter.novelty("a b"), 1.0);
    assert_eq!(exporter.novelty("a  b"), 0.0);
    assert_eq!(exporter.novelty("a b c d e f"), 1.0);
    assert_eq!(exporter.novelty("b c d e g"), 0.5);
}

proptest::proptest! {
    /// What a damaged file may hold that still unpacks: no row, no drawing and no outcome of it panics or goes on for ever.
    #[test]
    fn any_record_that_unpacks_can_be_read(at in 0_usize..4096, byte: u8, format in 0_usize..6) {
        let mut trace = trace();
        trace.nodes.push(node(Some(1), "and more", Some("length")));
        trace.chosen = vec![2, 1];
        let mut json = serde_json::to_vec(&trace).unwrap();
        let at = at % json.len();
        json[at] = byte;
        let stored = zstd::bulk::compress(&json, 1).unwrap();
        if let Ok(mut record) = crate::trace::decode_stored(&stored) {
            for level in [Level::Answer, Level::Step] {
                let options = ExportOptions { level, ..ExportOptions::default() };
                Exporter::new(Format::ALL[format], options).rows(&record);
            }
            crate::trace::render(&record);
            let update = crate::trace::OutcomeUpdate {
                outcome: Some(1.0),
                ..crate::trace::OutcomeUpdate::default()
            };
            let _ = record.apply(&update);
        }
    }
}

/// Blank steps, and a mistake behind each: neither the walk nor its turns look at all of it again each time.
#[test]
fn blank_and_wide_trees_are_walked_in_linear_time() {
    const NUM_STEPS: usize = 20_000;
    let mut trace = chain(NUM_STEPS, "\n");
    trace.nodes[NUM_STEPS].outcome = Some(1.0);
    trace.nodes[NUM_STEPS].text = "right".to_owned();
    for id in 0..NUM_STEPS - 1 {
        trace.nodes.push(NodeRecord {
            outcome: Some(0.0),
            ..node(Some(id), "wrong", Some("stop"))
        });
    }
    let started = thread_time();
    let options = ExportOptions {
        max_wrong_branches: NUM_STEPS,
        ..ExportOptions::default()
    };
    let rows = Exporter::new(Format::Linearised, options).rows(&trace);
    assert_eq!(rows[0]["num_backtracks"], NUM_STEPS - 1);
    // All wrong answers have the same steps above them: 400 MB of text in a group.
    let mut exporter = Exporter::new(Format::Groups, ExportOptions::default());
    assert!(exporter.rows(&trace).is_empty());
    assert_eq!(exporter.num_too_large(), 1);
    // Steps are planned without their texts.
    let mut exporter = Exporter::new(Format::StepValues, ExportOptions::default());
    let mut pending = exporter.begin(trace);
    assert!(matches!(exporter.next(&mut pending), Made::Row(_)));
    let took = thread_time() - started;
    assert!(took.as_secs() < 30, "{took:?}");
}

/// A right answer that computes, and a wrong one that does not; `é` is two bytes.
fn computed() -> TraceRecord {
    let block = "```python\nx\n```";
    let output = "\n```output\né\n```\n";
    let text = format!("{block}{output}");
    let [from, to] = [block.len(), block.len() + output.chars().count()];
    let called = NodeRecord {
        token_ids: vec![1, 2, 3, 4],
        inserted: vec![InsertedRecord {
            tokens: [2, 4],
            chars: [from, to],
            code: "x\n".to_owned(),
            output: "é\n".to_owned(),
            status: "completed".to_owned(),
        }],
        ..node(Some(1), &text, None)
    };
    let answer = |parent, text, outcome| NodeRecord {
        outcome: Some(outcome),
        logprob: -4.0,
        ..node(Some(parent), text, Some("stop"))
    };
    trace_of(vec![
        node(None, "", None),
        node(Some(0), "é:\n", None),
        called,
        answer(2, "So é.", 1.0),
        answer(0, "No.", 0.0),
    ])
}

#[test]
fn no_format_teaches_what_a_program_printed() {
    let trace = computed();
    let rows = |format| Exporter::new(format, ExportOptions::default()).rows(&trace);
    let span = json!([[18, 35]]);
    let cut = |text: &str| -> String { text.chars().skip(18).take(17).collect() };
    let output = "\n```output\né\n```\n";
    for format in [Format::Sft, Format::Linearised] {
        let rows = rows(format);
        let row = rows.last().unwrap();
        assert_eq!(row["inserted"], span);
        assert_eq!(cut(row["messages"][1]["content"].as_str().unwrap()), output);
        // Four of the six tokens were written.
        assert_eq!(row["num_tokens"], 4);
        assert_eq!(row["mean_logprob"], -1.0);
    }
    let walk = &rows(Format::Linearised)[0];
    assert_eq!(walk["form"], "backtracking");
    let text = walk["messages"][1]["content"].as_str().unwrap();
    let [from, to] = [0, 1].map(|at| walk["inserted"][0][at].as_u64().unwrap() as usize);
    let said: String = text.chars().skip(from).take(to - from).collect();
    assert_eq!(said, output);
    let steps = &rows(Format::StepValues)[0];
    assert_eq!(steps["inserted"], json!([[], [[15, 32]], []]));
    let pair = &rows(Format::Preferences)[0];
    assert_eq!(
        (&pair["inserted_chosen"], &pair["inserted_rejected"]),
        (&span, &json!([]))
    );
    let group = &rows(Format::Groups)[0];
    assert_eq!(group["inserted"], json!([span, []]));
    // A file may say anything of itself.
    let mut broken = computed();
    broken.nodes[2].inserted[0].chars = [usize::MAX, 0];
    broken.nodes[2].inserted[0].tokens = [9, 5];
    for format in [
        Format::Sft,
        Format::Linearised,
        Format::StepValues,
        Format::Groups,
    ] {
        let mut exporter = Exporter::new(format, ExportOptions::default());
        assert!(!exporter.rows(&broken).is_empty());
    }
}
