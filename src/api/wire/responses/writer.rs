//! From the events of an answer to those of a response's stream, and to the response.

use serde_json::{Value, json};

use super::code_item::CodeItem;
use super::head::ResponseHead;
use super::item::{Kind, OpenItem, short_logprobs};
use super::object::{self, Status, error_object};
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, Summary, TokenLogprob, ToolCallDelta, ToolOutput,
};
use crate::api::error::ApiError;
use crate::api::wire::format::Frame;

/// Writes one response.
pub(in crate::api) struct ResponseWriter {
    head: ResponseHead,
    /// Of the next event.
    sequence: u64,
    frames: Vec<Frame>,
    /// Items that are done.
    output: Vec<Value>,
    open: Option<OpenItem>,
    /// Of tokens whose text has not come yet.
    pending_logprobs: Vec<TokenLogprob>,
    end: Option<ChoiceEnd>,
}

impl ResponseWriter {
    pub fn new(head: ResponseHead) -> Self {
        Self {
            head,
            sequence: 0,
            frames: Vec::new(),
            output: Vec::new(),
            open: None,
            pending_logprobs: Vec::new(),
            end: None,
        }
    }

    /// The response as it is before its first token, with the beginning of its stream.
    pub fn begin(&mut self) -> Vec<Frame> {
        if !self.head.is_streamed {
            return Vec::new();
        }
        if self.head.is_background {
            let queued = self.object(Status::Queued);
            self.emit("response.created", json!({"response": queued}));
            self.emit("response.queued", json!({"response": queued}));
        } else {
            let response = self.object(Status::InProgress);
            self.emit("response.created", json!({"response": response}));
        }
        let response = self.object(Status::InProgress);
        self.emit("response.in_progress", json!({"response": response}));
        self.take_frames()
    }

    /// The response before anything is known of its answer.
    pub fn queued(&self) -> Value {
        self.object(Status::Queued)
    }

    /// What an event adds to the stream. The last one, `Done`, is for [`Self::conclude`].
    pub fn take(&mut self, event: AnswerEvent) -> Vec<Frame> {
        match event {
            // A response has no place for a prompt's report, and one choice.
            AnswerEvent::Prompt(_) | AnswerEvent::Done(_) => {}
            AnswerEvent::Delta { choice: 0, delta } => self.delta(delta),
            AnswerEvent::End {
                choice: 0,
                last,
                end,
            } => {
                self.delta(last);
                self.end(end);
            }
            AnswerEvent::Delta { .. } | AnswerEvent::End { .. } => {}
            AnswerEvent::Search(progress) => {
                self.emit("response.search_event", json!({"search_event": progress}));
            }
        }
        self.take_frames()
    }

    /// The whole response.
    pub fn conclude(&mut self, summary: &Summary) -> Value {
        let status = match self.end.as_ref().map(|end| end.reason) {
            Some(EndReason::Stop | EndReason::ToolCalls) => Status::Completed,
            Some(EndReason::Length) => Status::Incomplete,
            Some(EndReason::Abort) | None => {
                let error = ApiError::unavailable("the server ended the response as it shut down");
                Status::Failed(error_object(&error))
            }
        };
        let mut response = self.object(status);
        object::conclude(&mut response, summary);
        response
    }

    /// The response that an error ended, with what there is of its answer.
    pub fn fail(&mut self, error: &ApiError) -> Value {
        self.close("incomplete");
        self.object(Status::Failed(error_object(error)))
    }

    /// The response that its client ended.
    pub fn cancel(&mut self) -> Value {
        self.close("incomplete");
        self.object(Status::Cancelled)
    }

    /// The end of the stream of a response that is over.
    pub fn last(&mut self, response: &Value) -> Vec<Frame> {
        let name = match response["status"].as_str() {
            Some("completed") => "response.completed",
            // Streams have no event of their own for a response that was cancelled.
            Some("incomplete" | "cancelled") => "response.incomplete",
            _ => "response.failed",
        };
        self.emit(name, json!({"response": response}));
        self.take_frames()
    }

    /// The end of a stream that failed; `response` is the failed one.
    pub fn last_of_failed(&mut self, error: &ApiError, response: &Value) -> Vec<Frame> {
        let fields = json!({
            "code": response["error"]["code"],
            "message": error.message,
            "param": error.param,
        });
        self.emit("error", fields);
        self.last(response)
    }

    fn object(&self, status: Status) -> Value {
        object::response(&self.head, status, &self.output)
    }

    fn delta(&mut self, delta: Delta) {
        // What a program printed is alone in its delta, and an item of its own.
        if !delta.tool_outputs.is_empty() {
            delta.tool_outputs.iter().for_each(|it| self.code_call(it));
            return;
        }
        let is_blank = delta.reasoning.is_empty() && delta.tool_calls.is_empty();
        if !delta.reasoning.is_empty() {
            self.reasoning(&delta.reasoning);
        }
        let logprobs = delta.logprobs.unwrap_or_default();
        if !delta.text.is_empty() {
            let mut all = std::mem::take(&mut self.pending_logprobs);
            all.extend(logprobs);
            self.text(&delta.text, all);
        } else if is_blank {
            // A token without a text, such as a part of a character.
            self.pending_logprobs.extend(logprobs);
        }
        for call in delta.tool_calls {
            self.call(call);
        }
    }

    fn reasoning(&mut self, text: &str) {
        self.open(|item| matches!(item.kind, Kind::Reasoning), Kind::Reasoning);
        let name = match self.head.summarises {
            true => "response.reasoning_summary_text.delta",
            false => "response.reasoning_text.delta",
        };
        self.more(name, text, None);
    }

    fn text(&mut self, text: &str, logprobs: Vec<TokenLogprob>) {
        let is_message = |item: &OpenItem| matches!(item.kind, Kind::Message { .. });
        let logprobs_json = self.head.is_streamed.then(|| short_logprobs(&logprobs));
        let kind = Kind::Message {
            logprobs: Vec::new(),
        };
        self.open(is_message, kind);
        if let Some(OpenItem {
            kind: Kind::Message { logprobs: all },
            ..
        }) = &mut self.open
        {
            all.extend(logprobs);
        }
        self.more("response.output_text.delta", text, logprobs_json);
    }

    fn call(&mut self, delta: ToolCallDelta) {
        let ToolCallDelta {
            index,
            head,
            arguments,
        } = delta;
        if let Some(head) = head {
            self.close("completed");
            self.open(|_| false, Kind::Call { index, head });
        }
        let is_open =
            |item: &OpenItem| matches!(item.kind, Kind::Call { index: open, .. } if open == index);
        // The rest of a call follows its beginning before anything else does.
        if !arguments.is_empty() && self.open.as_ref().is_some_and(is_open) {
            self.more("response.function_call_arguments.delta", &arguments, None);
        }
    }

    /// A program that the server ran: it is over when it is told.
    fn code_call(&mut self, output: &ToolOutput) {
        self.close("completed");
        let index = self.output.len();
        let call = CodeItem::new(output, &self.head.hex, index);
        let added = call.json("in_progress", true);
        let fields = json!({"output_index": index, "item": added});
        self.emit("response.output_item.added", fields);
        for (name, fields) in call.events(index) {
            self.emit(name, fields);
        }
        let done = call.json(call.status(), false);
        let fields = json!({"output_index": index, "item": done});
        self.emit("response.output_item.done", fields);
        self.output.push(done);
    }

    /// Begins an item unless the one that is open is the right one.
    fn open(&mut self, is_it: impl Fn(&OpenItem) -> bool, kind: Kind) {
        if self.open.as_ref().is_some_and(is_it) {
            return;
        }
        self.close("completed");
        let (index, hex) = (self.output.len(), &self.head.hex);
        let item = OpenItem::new(kind, hex, index, &self.head);
        let fields = json!({"output_index": index, "item": item.json("in_progress", true)});
        self.emit("response.output_item.added", fields);
        if let Some((name, part)) = item.part_event("added", true) {
            let fields = item.place(index, [("part", part)]);
            self.emit(name, fields);
        }
        self.open = Some(item);
    }

    /// More of the open item.
    fn more(&mut self, name: &'static str, text: &str, logprobs: Option<Value>) {
        let index = self.output.len();
        let Some(item) = &mut self.open else {
            return;
        };
        item.text.push_str(text);
        if !self.head.is_streamed {
            return;
        }
        let mut fields = item.place(index, [("delta", text.into())]);
        if let Some(logprobs) = logprobs {
            fields["logprobs"] = logprobs;
        }
        if self.head.obfuscates {
            fields["obfuscation"] = obfuscation(text).into();
        }
        self.emit(name, fields);
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: &'static str) {
        let Some(item) = self.open.take() else {
            return;
        };
        let index = self.output.len();
        if self.head.is_streamed {
            for (name, fields) in item.done_events() {
                let fields = item.place(index, fields);
                self.emit(name, fields);
            }
            if let Some((name, part)) = item.part_event("done", false) {
                let fields = item.place(index, [("part", part)]);
                self.emit(name, fields);
            }
        }
        let done = item.json(status, false);
        let fields = json!({"output_index": index, "item": done});
        self.emit("response.output_item.done", fields);
        self.output.push(done);
    }

    fn end(&mut self, end: ChoiceEnd) {
        if self.output.is_empty() && self.open.is_none() {
            let kind = Kind::Message {
                logprobs: Vec::new(),
            };
            self.open(|_| false, kind);
        }
        let rest = std::mem::take(&mut self.pending_logprobs);
        if let Some(OpenItem {
            kind: Kind::Message { logprobs },
            ..
        }) = &mut self.open
        {
            logprobs.extend(rest);
        }
        self.close(match end.reason {
            EndReason::Stop | EndReason::ToolCalls => "completed",
            EndReason::Length | EndReason::Abort => "incomplete",
        });
        self.end = Some(end);
    }

    fn emit(&mut self, name: &'static str, fields: Value) {
        if !self.head.is_streamed {
            return;
        }
        let mut data = json!({"type": name, "sequence_number": self.sequence});
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        self.sequence += 1;
        self.frames.push(Frame {
            name: Some(name),
            data: data.to_string(),
        });
    }

    fn take_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.frames)
    }
}

/// Random characters that fill a delta up to a common length.
fn obfuscation(text: &str) -> String {
    let mut random = uuid::Uuid::new_v4().simple().to_string();
    random.truncate(32 - text.len() % 16);
    random
}
