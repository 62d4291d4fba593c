//! The engine goes on whatever comes: queues that move, steps that fit, replies that nobody waits
//! for, executors that take their time.

use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt;
use ponder::engine::executor::{StepInput, StepOutput, Ticket};
use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::stepped::SteppedEngine;
use ponder::engine::{
    Backend, EngineConfig, EngineError, EngineHandle, Executor, ExecutorError, FinishReason,
    GenerateRequest, ModelExecutor, RequestStream, SamplingParams, SpeculativeConfig, StreamEvent,
    TokenMask,
};
use ponder::model::{LoraAdapter, ModelInfo};

use crate::engine::wait_for;

const VOCAB_SIZE: usize = 50;

fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        block_size: 16,
        num_blocks: 100,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig::default(),
    }
}

fn executor() -> Box<dyn Executor> {
    let model = FakeModel::new(VOCAB_SIZE, Fault::None);
    Box::new(ModelExecutor::new(Box::new(model)))
}

fn request(prompt_len: u32, max_tokens: usize) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    GenerateRequest::new((0..prompt_len).map(|id| id % 50).collect(), params)
}

fn drain(stream: &mut RequestStream) -> (Vec<u32>, Option<FinishReason>) {
    let (mut token_ids, mut end) = (Vec::new(), None);
    while let Ok(event) = stream.try_recv() {
        match event {
            StreamEvent::Token { token_id, .. } => token_ids.push(token_id),
            StreamEvent::Finished { reason, .. } => end = Some(reason),
            StreamEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    (token_ids, end)
}

/// A cached partial tail wants a block for its copy while its source is held: in a cache that the request fills there is none.
#[test]
fn a_request_that_fills_the_cache_is_admitted_again() {
    for block_size in [1, 4, 16, 32, 64] {
        let config = EngineConfig {
            max_model_len: 64,
            max_num_seqs: 1,
            block_size,
            num_blocks: 64_usize.div_ceil(block_size),
            ..config()
        };
        for prompt_len in 50..64 {
            let mut engine = SteppedEngine::new(executor(), None, config.clone()).unwrap();
            let mut first = None;
            for _ in 0..3 {
                let mut stream = engine.handle().submit(request(prompt_len, 1)).unwrap();
                for _ in 0..4 {
                    engine.turn(Duration::ZERO).unwrap();
                }
                let answer = drain(&mut stream);
                assert_eq!(
                    answer.1,
                    Some(FinishReason::Length),
                    "{block_size} {prompt_len}"
                );
                assert_eq!(*first.get_or_insert(answer.clone()), answer);
            }
            assert_eq!(engine.leftovers(), None);
        }
    }
}

/// A search submits several requests before it reads the first, and waits where its tenant holds
/// all that it may. What the engine has ended is held no more, whether or not somebody has read it.
#[test]
fn answers_that_nobody_reads_yet_hold_no_share() {
    let config = EngineConfig {
        max_num_seqs: 4,
        max_num_waiting_seqs: 20,
        is_shared: true,
        ..config()
    };
    let most = config.max_held_of_one();
    let mut engine = SteppedEngine::new(executor(), None, config).unwrap();
    let submit = |engine: &SteppedEngine| engine.handle().submit(request(20, 2));
    let mut unread: Vec<_> = (0..most).map(|_| submit(&engine).unwrap()).collect();
    let refused = submit(&engine).err();
    assert!(matches!(refused, Some(EngineError::Overloaded { .. })));
    for _ in 0..60 {
        engine.turn(Duration::ZERO).unwrap();
    }
    unread.push(submit(&engine).unwrap());
    for _ in 0..5 {
        engine.turn(Duration::ZERO).unwrap();
    }
    for stream in &mut unread {
        assert_eq!(drain(stream).1, Some(FinishReason::Length));
    }
    // Whoever leaves gives back what it held before the next step.
    let left: Vec<_> = (0..most).map(|_| submit(&engine).unwrap()).collect();
    drop(left);
    engine.turn(Duration::ZERO).unwrap();
    engine.turn(Duration::ZERO).unwrap();
    assert!(submit(&engine).is_ok());
}

/// Whoever asked for an adapter may leave before it is loaded, while the answer is on its way, or in time.
#[test]
fn an_adapter_that_nobody_waits_for_is_unloaded() {
    let load = |engine: &SteppedEngine| {
        let handle = engine.handle().clone();
        let adapter = LoraAdapter { layers: Vec::new() };
        let mut loading = Box::pin(async move { handle.load_adapter(adapter).await });
        assert!(
            loading.as_mut().now_or_never().is_none(),
            "it waits for the engine"
        );
        loading
    };
    let mut engine = SteppedEngine::new(executor(), None, config()).unwrap();
    let loading = load(&engine);
    drop(loading);
    engine.turn(Duration::ZERO).unwrap();
    engine.turn(Duration::ZERO).unwrap();
    assert_eq!(engine.leftovers(), None, "it had left before");
    let loading = load(&engine);
    engine.turn(Duration::ZERO).unwrap();
    drop(loading);
    engine.turn(Duration::ZERO).unwrap();
    assert_eq!(
        engine.leftovers(),
        None,
        "it left with the answer on its way"
    );
    let loading = load(&engine);
    engine.turn(Duration::ZERO).unwrap();
    let id = loading.now_or_never().unwrap().unwrap();
    assert!(engine.leftovers().is_some(), "it stays with who took it");
    engine.handle().unload_adapter(id);
    engine.turn(Duration::ZERO).unwrap();
    assert_eq!(engine.leftovers(), None);
}

/// Runs the fake model on a thread of its own, like a device: `launch` returns at once, `finish` waits. A step runs when `go` says so.
struct Device {
    info: ModelInfo,
    steps: mpsc::Sender<Work>,
    num_launched: u64,
}

enum Work {
    Allocate([usize; 3]),
    Step(Box<StepInput>),
    Finish(
        Vec<TokenMask>,
        mpsc::Sender<Result<StepOutput, ExecutorError>>,
    ),
}

impl Device {
    fn new(go: mpsc::Receiver<()>) -> Self {
        let mut executor = executor();
        let info = executor.info().clone();
        let (steps, work) = mpsc::channel();
        std::thread::spawn(move || {
            let mut launched = None;
            while let Ok(work) = work.recv() {
                match work {
                    Work::Allocate([blocks, size, rows]) => {
                        executor.allocate(blocks, size, rows).unwrap();
                    }
                    Work::Step(step) => {
                        // Without a sender every step runs.
                        let _ = go.recv();
                        launched = Some(executor.launch(*step));
                    }
                    Work::Finish(masks, output) => {
                        let ticket = launched.take().expect("a step was launched");
                        let finished = ticket.and_then(|ticket| executor.finish(ticket, &masks));
                        output.send(finished).unwrap();
                    }
                }
            }
        });
        Self {
            info,
            steps,
            num_launched: 0,
        }
    }
}

impl Executor for Device {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate(&mut self, blocks: usize, size: usize, rows: usize) -> Result<(), ExecutorError> {
        self.steps
            .send(Work::Allocate([blocks, size, rows]))
            .unwrap();
        Ok(())
    }

    fn launch(&mut self, step: StepInput) -> Result<Ticket, ExecutorError> {
        self.steps.send(Work::Step(Box::new(step))).unwrap();
        self.num_launched += 1;
        Ok(Ticket(self.num_launched))
    }

    fn finish(&mut self, _: Ticket, masks: &[TokenMask]) -> Result<StepOutput, ExecutorError> {
        let (output, finished) = mpsc::channel();
        self.steps
            .send(Work::Finish(masks.to_vec(), output))
            .unwrap();
        finished.recv().unwrap()
    }
}

#[test]
fn an_executor_may_run_beside_the_engine() {
    let all = [(9, 30), (40, 12), (100, 25)];
    let answers = |engine: &EngineHandle| -> Vec<Vec<u32>> {
        let submit = |(len, most)| engine.submit(request(len, most)).unwrap();
        let streams: Vec<RequestStream> = all.map(submit).into();
        let mut answers = Vec::new();
        for mut stream in streams {
            let mut token_ids = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                if let StreamEvent::Token { token_id, .. } = event {
                    token_ids.push(token_id);
                }
            }
            answers.push(token_ids);
        }
        answers
    };
    let (_, never) = mpsc::channel();
    let device = Box::new(Device::new(never));
    let device = EngineHandle::start_executor(device, None, config()).unwrap();
    let plain = EngineHandle::start_executor(executor(), None, config()).unwrap();
    assert_eq!(answers(&device), answers(&plain));
}

/// What arrives while a step runs is taken before the step ends: a request that is aborted gets no more tokens from it.
#[test]
fn what_arrives_while_a_step_runs_is_handled() {
    let (go, gate) = mpsc::channel();
    let device = Box::new(Device::new(gate));
    let engine = EngineHandle::start_executor(device, None, config()).unwrap();
    let mut aborted = engine.submit(request(4, 200)).unwrap();
    go.send(()).unwrap();
    let event = aborted.blocking_recv();
    assert!(matches!(event, Some(StreamEvent::PromptDone { .. })));
    // The second step is launched and waits.
    engine.abort(aborted.id());
    let mut late = engine.submit(request(4, 2)).unwrap();
    drop(go);
    let mut num_tokens = 0;
    let end = loop {
        match aborted.blocking_recv() {
            Some(StreamEvent::Token { .. }) => num_tokens += 1,
            Some(StreamEvent::Finished { reason, .. }) => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end, FinishReason::Abort);
    assert!(num_tokens < 200);
    while let Some(event) = late.blocking_recv() {
        assert!(!matches!(event, StreamEvent::Error(_)));
    }
    wait_for(|| engine.stats().num_used_blocks == 0);
}

#[test]
fn the_watchdog_tells_of_a_step_that_does_not_end() {
    let (go, gate) = mpsc::channel();
    let engine = Box::new(Device::new(gate));
    let engine = EngineHandle::start_executor(engine, None, config()).unwrap();
    engine.watch(Duration::from_millis(40)).unwrap();
    assert_eq!(engine.stalled_for(), None, "an idle engine is not stalled");
    let mut stream = engine.submit(request(4, 3)).unwrap();
    wait_for(|| engine.stalled_for().is_some());
    assert!(engine.stalled_for() >= Some(Duration::from_millis(40)));
    assert!(engine.is_healthy(), "it may go on");
    drop(go);
    while stream.blocking_recv().is_some() {}
    wait_for(|| engine.stalled_for().is_none());
}
