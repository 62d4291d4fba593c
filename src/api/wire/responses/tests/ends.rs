//! How responses end, and what is told beside their items.

use serde_json::{Value, json};

use super::*;

#[test]
fn cut_responses_are_incomplete() {
    let (events, response) = stream(head(), vec![end(text("A"), EndReason::Length)]);
    assert_eq!(response["status"], "incomplete");
    assert_eq!(
        response["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(
        response["output"],
        json!([message("incomplete", Some("A"))])
    );
    assert_eq!(events.last().unwrap()[0], "response.incomplete");
    // An answer without a token has a message without a text.
    let (_, response) = stream(head(), vec![end(Delta::default(), EndReason::Stop)]);
    assert_eq!(response["output"], json!([message("completed", Some(""))]));
    // Calls that were cut are told as such.
    let cut = end(call(0, Some("f"), "{\"a"), EndReason::Length);
    let (_, response) = stream(head(), vec![cut]);
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
    let (events, response) = stream(head(), vec![end(text("A"), EndReason::Abort)]);
    assert_eq!(response["status"], "failed");
    assert_eq!(response["error"]["code"], "server_error");
    assert_eq!(events.last().unwrap()[0], "response.failed");
}

#[test]
fn failed_streams_end_with_the_error_and_the_failed_response() {
    let mut writer = ResponseWriter::new(head());
    writer.begin();
    writer.take(more(text("A")));
    let error = ApiError::deadline();
    let response = writer.fail(&error);
    assert_eq!(response["status"], "failed");
    let error_object = json!({"code": "server_error", "message": error.message});
    assert_eq!(response["error"], error_object);
    assert_eq!(
        response["output"],
        json!([message("incomplete", Some("A"))])
    );
    let frames = writer.last_of_failed(&error, &response);
    let names: Vec<Option<&str>> = frames.iter().map(|frame| frame.name).collect();
    let closing = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ];
    let expected = [&closing[..], &["error", "response.failed"]].concat();
    assert_eq!(names, expected.into_iter().map(Some).collect::<Vec<_>>());
    let told: Value = serde_json::from_str(&frames[3].data).unwrap();
    assert_eq!(
        told,
        json!({"type": "error", "sequence_number": 8, "code": "server_error",
            "message": error.message, "param": null})
    );
}

#[test]
fn background_responses_are_queued_first_and_may_be_cancelled() {
    let head = ResponseHead {
        is_background: true,
        ..head()
    };
    let mut writer = ResponseWriter::new(head);
    assert_eq!(writer.queued()["status"], "queued");
    let names: Vec<Option<&str>> = writer.begin().iter().map(|frame| frame.name).collect();
    let expected = [
        "response.created",
        "response.queued",
        "response.in_progress",
    ];
    assert_eq!(names, expected.map(Some));
    writer.take(more(text("A")));
    let response = writer.cancel();
    assert_eq!(response["status"], "cancelled");
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(
        writer.last(&response).last().unwrap().name,
        Some("response.incomplete")
    );
}

#[test]
fn searches_and_traces_are_told() {
    let progress = SearchEvent::Agreed {
        pieces: Vec::new(),
        text: "A".to_owned(),
    };
    let events = middle(head(), vec![AnswerEvent::Search(progress.clone())]);
    let expected = json!([["response.search_event", {"search_event": progress}]]);
    assert_eq!(json!(events), expected);
    let mut writer = ResponseWriter::new(head());
    writer.take(end(text("A"), EndReason::Stop));
    let report = json!({"strategy": "best_of_n"});
    let response = writer.conclude(&Summary {
        search: Some(report.clone()),
        traces: Some(vec![Some("trace-1".to_owned())]),
        adaptation: Some(json!({"phases": []})),
        ..summary()
    });
    assert_eq!(response["search"], report);
    assert_eq!(response["trace_id"], "trace-1");
    assert_eq!(response["adaptation"], json!({"phases": []}));
}

#[test]
fn deltas_may_hide_their_lengths() {
    let head = ResponseHead {
        obfuscates: true,
        ..head()
    };
    let events = middle(head, vec![end(text("A"), EndReason::Stop)]);
    let delta = events
        .iter()
        .find(|event| event[0] == "response.output_text.delta");
    assert_eq!(delta.unwrap()[1]["obfuscation"].as_str().unwrap().len(), 31);
}
