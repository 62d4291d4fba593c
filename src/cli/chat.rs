//! `ponder chat`: a streaming chat in the terminal.

use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, FromArgMatches, Parser};
use futures::StreamExt;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::chat_search::{self, SearchProgress};
use super::engine_args::EngineArgs;
use super::programs::python_runner;
use super::{interrupt, setup, terminal};
use crate::api::{AppState, ServerConfig, serve};
use crate::model::catalogue::{DEFAULT_MODEL, home};
use crate::reward::{Programs, default_parallel};

const HELP: &str = "\
/clear   forget the conversation      /system TEXT   set the system message
/help    this                         Ctrl-C stops an answer, Ctrl-D leaves";

#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Message to send; without one, an interactive chat starts
    pub message: Option<String>,
    /// Address of a running server, such as http://127.0.0.1:8000 [default: load a model in this
    /// process]
    #[arg(long, env = "PONDER_URL")]
    pub url: Option<String>,
    /// Model to load in this process, or the name to ask the server for
    #[arg(long, short, env = "PONDER_MODEL")]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// System message
    #[arg(long, short)]
    pub system: Option<String>,
    // The help names all strategies.
    #[arg(long, value_name = "STRATEGY", help = super::chat_search::help())]
    pub search: Option<String>,
    /// Run the Python that the model writes (a server at --url needs --allow-code-execution)
    #[arg(long)]
    pub code: bool,
    /// Draw the search's tree after the answer
    #[arg(long, requires = "search")]
    pub show_tree: bool,
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    #[arg(long, default_value_t = 1024)]
    pub max_tokens: usize,
}

/// A conversation with a server.
struct Session {
    client: reqwest::Client,
    url: String,
    model: String,
    args: ChatArgs,
    messages: Vec<Value>,
}

pub(super) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    // The client wants a TLS provider even for plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (url, model) = match &args.url {
        Some(url) => {
            let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
            let model = match &args.model {
                Some(model) => model.clone(),
                None => runtime.block_on(first_model(&url, args.api_key.as_deref()))?,
            };
            (url, model)
        }
        None => {
            let model = args
                .model
                .clone()
                .unwrap_or_else(|| DEFAULT_MODEL.to_owned());
            let address = start_server(&runtime, &model, args.code)?;
            (format!("http://{address}"), setup::model_name(&model))
        }
    };
    let mut session = Session {
        client: reqwest::Client::new(),
        url,
        model,
        args: args.clone(),
        messages: Vec::new(),
    };
    session.reset();
    if let Some(message) = &args.message {
        return runtime.block_on(session.ask(message));
    }
    if !std::io::stdin().is_terminal() {
        let mut message = String::new();
        std::io::stdin().read_to_string(&mut message)?;
        return runtime.block_on(session.ask(message.trim()));
    }
    interact(&runtime, &mut session)
}

/// A server on a free port of this process.
fn start_server(
    runtime: &tokio::runtime::Runtime,
    model: &str,
    runs_code: bool,
) -> anyhow::Result<SocketAddr> {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        engine: EngineArgs,
    }
    let command = <Defaults as clap::CommandFactory>::command();
    let matches = command.try_get_matches_from(["ponder", model])?;
    let engine = Defaults::from_arg_matches(&matches)?.engine;
    let state = AppState::new(ServerConfig {
        served_model_names: vec![setup::model_name(model)],
        ..ServerConfig::default()
    });
    // What can fail fast is tried before the model loads.
    let programs = || Programs::new(default_parallel(), false);
    let python = runs_code.then(|| python_runner(programs())).transpose()?;
    let mut served = setup::start(&engine)?;
    served.rewards.python = python;
    state.set_served(served);
    // From here on Ctrl-C ends an answer.
    interrupt::leave_signals();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(serve(listener, state, std::future::pending()));
    Ok(address)
}

/// The first model that a server lists.
pub(super) async fn first_model(url: &str, key: Option<&str>) -> anyhow::Result<String> {
    let mut request = reqwest::Client::new().get(format!("{url}/v1/models"));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request
        .send()
        .await
        .with_context(|| format!("no server answers at {url}"))?;
    let models: Value = response.error_for_status()?.json().await?;
    models["data"][0]["id"]
        .as_str()
        .map(str::to_owned)
        .context("the server lists no model")
}

fn interact(runtime: &tokio::runtime::Runtime, session: &mut Session) -> anyhow::Result<()> {
    println!("{} — /help for commands, Ctrl-D to leave", session.model);
    let mut editor = DefaultEditor::new()?;
    let history = home().join("chat_history");
    let _ = editor.load_history(&history);
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                let line = line.trim();
                if line.is_empty() {
                    continue;
                }
                let _ = editor.add_history_entry(line);
                match line.split_once(' ').unwrap_or((line, "")) {
                    ("/help", _) => println!("{HELP}"),
                    ("/clear", _) => session.reset(),
                    ("/system", text) => {
                        session.args.system = Some(text.to_owned());
                        session.reset();
                    }
                    _ => {
                        if let Err(error) = runtime.block_on(session.ask(line)) {
                            eprintln!("{error:#}");
                        }
                    }
                }
            }
            Err(ReadlineError::Interrupted) => println!("(Ctrl-D leaves)"),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let _ = std::fs::create_dir_all(home());
    let _ = editor.save_history(&history);
    Ok(())
}

impl Session {
    fn reset(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.args.system {
            self.messages
                .push(json!({"role": "system", "content": system}));
        }
    }

    /// Sends a message and prints the answer as it comes; Ctrl-C ends the answer.
    async fn ask(&mut self, message: &str) -> anyhow::Result<()> {
        self.messages
            .push(json!({"role": "user", "content": message}));
        let mut body = json!({
            "model": self.model,
            "messages": self.messages,
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": self.args.temperature,
            "max_tokens": self.args.max_tokens,
        });
        if self.args.code {
            body["tools"] = json!([{"type": "code_interpreter"}]);
        }
        if let Some(search) = &self.args.search {
            body["search"] = chat_search::request(search, self.args.show_tree)?;
        }
        let mut request = self
            .client
            .post(format!("{}/v1/chat/completions", self.url))
            .json(&body);
        if let Some(key) = &self.args.api_key {
            request = request.bearer_auth(key);
        }
        let started = Instant::now();
        let response = request.send().await;
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                self.messages.pop();
                bail!("no server answers at {}: {error}", self.url);
            }
        };
        if !response.status().is_success() {
            self.messages.pop();
            let body: Value = response.json().await.unwrap_or_default();
            bail!(
                "{}",
                body["error"]["message"]
                    .as_str()
                    .unwrap_or("the server refused")
            );
        }
        let progress = self.args.search.as_ref().map(|_| SearchProgress::new());
        let answer = print_answer(response, started, progress).await?;
        self.messages
            .push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}

/// What the model did not write looks different.
fn show(text: &str, is_tool_output: bool) -> std::io::Result<()> {
    match is_tool_output {
        true => print!("{}", terminal::dim_text(text)),
        false => print!("{text}"),
    }
    std::io::stdout().flush()
}

async fn print_answer(
    response: reqwest::Response,
    started: Instant,
    mut progress: Option<SearchProgress>,
) -> anyhow::Result<String> {
    let mut bytes = response.bytes_stream();
    let (mut buffer, mut answer) = (Vec::new(), String::new());
    let (mut first, mut num_tokens) = (None, 0);
    let (mut num_accepted, mut num_drafted) = (0_u64, 0_u64);
    loop {
        let chunk = tokio::select! {
            chunk = bytes.next() => chunk,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(chunk) = chunk else { break };
        buffer.extend_from_slice(&chunk?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else {
                continue;
            };
            let Ok(mut event) = serde_json::from_slice::<Value>(data) else {
                continue;
            };
            if let Some(progress) = &mut progress {
                progress.take(&mut event);
            }
            if let Some(message) = event["error"]["message"].as_str() {
                bail!("{message}");
            }
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
                if let Some(progress) = &progress {
                    progress.clear();
                }
                first.get_or_insert_with(Instant::now);
                show(text, !event["choices"][0]["ponder_tool_outputs"].is_null())?;
                answer.push_str(text);
            }
            let usage = &event["usage"];
            if let Some(count) = usage["completion_tokens"].as_u64() {
                num_tokens = count;
                let details = &usage["completion_tokens_details"];
                let of = |name: &str| details[name].as_u64().unwrap_or(0);
                num_accepted = of("accepted_prediction_tokens");
                num_drafted = num_accepted + of("rejected_prediction_tokens");
            }
        }
    }
    println!();
    if let Some(report) = progress.and_then(|progress| {
        progress.clear();
        progress.report()
    }) {
        eprintln!("{report}");
    } else if std::io::stdout().is_terminal() && num_tokens > 0 {
        let first = first.unwrap_or(started);
        let rate = num_tokens as f64 / first.elapsed().as_secs_f64().max(1e-9);
        let ttft = (first - started).as_secs_f64();
        let drafts = match num_drafted {
            0 => String::new(),
            _ => format!(", {num_accepted} of {num_drafted} drafted tokens accepted"),
        };
        let line = format!("{num_tokens} tokens, {rate:.0} tok/s, first after {ttft:.2} s{drafts}");
        eprintln!("{}", terminal::dim(&line));
    }
    Ok(answer)
}
