//! Whole decoders of every family.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ponder_kernels::{KvDtype, ThreadPool};

use super::tiny_models::models;
use super::{CODED_MODELS, assert_near, assert_same_bits, random};
use crate::model::families::FAMILIES;
use crate::model::lora::{LoraAdapter, LowRank, Target};
use crate::model::ops::reference::ReferenceOps;
use crate::model::ops::{CpuOps, Ops};
use crate::model::skip_search::{Probe, SkipCosts};
use crate::model::{
    AdapterId, AdapterStore, CausalLm, Decoder, ForwardBatch, ForwardError, LoadOptions,
    ModelFiles, SequenceRows, SkipSet, SkipsSubLayers, Steering, SubLayer, load_on,
};

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: u32 = 32;
const ADAPTER: AdapterId = AdapterId(7);
const LENGTHS: [usize; 3] = [19, 1, 8];

/// `tolerance`: of the largest logit, with keys and values of f16, which the reference keeps whole.
pub(super) fn check_all<O: Ops>(new: impl Fn() -> O, tolerance: f32, dtypes: &[KvDtype]) {
    let models = models();
    for family in FAMILIES {
        let is_there = models.iter().any(|(_, name, _)| *name == family.name);
        assert!(is_there, "no model of {}", family.name);
    }
    for (place, name, files) in &models {
        if let Some(what) = new().lacks(files.config().unwrap().needs()) {
            let refused = load_on(new(), files, LoadOptions::default()).err();
            assert!(refused.unwrap().to_string().contains(what), "{place}");
            continue;
        }
        for dtype in dtypes {
            let tolerance = match dtype {
                KvDtype::F16 => tolerance,
                KvDtype::Q8_0 => CODED_MODELS,
            };
            let mut model = load(new(), files, *dtype);
            assert_eq!(model.info().architecture, *name, "{place}");
            check_model(place, &mut model, files, (*dtype, tolerance));
        }
    }
}

fn load<O: Ops>(ops: O, files: &ModelFiles, kv_cache_dtype: KvDtype) -> Decoder<O> {
    let options = LoadOptions {
        kv_cache_dtype,
        max_model_len: Some(64),
        ..LoadOptions::default()
    };
    let mut model = load_on(ops, files, options).unwrap();
    model
        .allocate_kv_cache(NUM_BLOCKS as usize, BLOCK_SIZE, 64)
        .unwrap();
    let adapter = adapter(&model);
    AdapterStore::load(&mut model, ADAPTER, &adapter).unwrap();
    model
}

/// An adapter of some of the products that the model has.
fn adapter<O: Ops>(model: &Decoder<O>) -> LoraAdapter {
    let config = &model.config;
    let targets = match (&config.mla, &config.moe) {
        (None, None) => {
            use Target::{Down, Gate, Output, Q, V};
            vec![Q, V, Output, Gate, Down]
        }
        (None, Some(_)) => vec![Target::K, Target::Output],
        (Some(_), _) => vec![],
    };
    let part = |target: Target| {
        let (out_features, in_features) = target.shape(config);
        let scaled = |seed, count| random(seed, count).iter().map(|x| 0.1 * x).collect();
        LowRank {
            rank: 3,
            out_features,
            in_features,
            a: scaled(100, 3 * in_features),
            b: scaled(101, 3 * out_features),
        }
    };
    let layer: BTreeMap<_, _> = targets.into_iter().map(|t| (t, part(t))).collect();
    let mut layers = vec![layer; config.num_layers];
    if layers[0].contains_key(&Target::Down) {
        // It alone, which reads what gate and up leave.
        layers[0].retain(|target, _| *target == Target::Down);
    }
    LoraAdapter { layers }
}

/// Which tokens of which sequences a step has.
type Rows = Vec<(usize, Range<usize>)>;

/// What is computed: one of the sequences has an adapter, one is steered.
#[derive(Clone, Copy)]
struct Run<'a> {
    steps: &'a [Rows],
    is_scattered: bool,
    /// Logits of each sequence's last row of a step alone.
    only_last: bool,
    skip: Option<&'a SkipSet>,
}

impl Run<'_> {
    /// Every sequence's logits, row by row.
    fn logits<O: Ops>(&self, model: &mut Decoder<O>) -> Result<Vec<f32>, ForwardError> {
        let vocab_size = model.info().vocab_size;
        let steering = steering(model);
        let tables: Vec<Vec<u32>> = (0..LENGTHS.len() as u32)
            .map(|sequence| match self.is_scattered {
                true => vec![
                    (sequence * 2 + 1) * 13 % NUM_BLOCKS,
                    (sequence * 2 + 2) * 13 % NUM_BLOCKS,
                ],
                false => vec![sequence * 2, sequence * 2 + 1],
            })
            .collect();
        let mut results = vec![Vec::new(); LENGTHS.len()];
        for step in self.steps {
            let (mut token_ids, mut positions) = (Vec::new(), Vec::new());
            let (mut slots, mut wanted) = (Vec::new(), Vec::new());
            let (mut sequences, mut adapters, mut steered) = (Vec::new(), Vec::new(), Vec::new());
            for (sequence, tokens) in step {
                for token in tokens.clone() {
                    if !self.only_last || token + 1 == tokens.end {
                        wanted.push(token_ids.len() as u32);
                    }
                    token_ids.push(((sequence * 31 + token * token * 7 + 3) % vocab_size) as u32);
                    positions.push(token as u32);
                    let block = tables[*sequence][token / BLOCK_SIZE];
                    slots.push(block * BLOCK_SIZE as u32 + (token % BLOCK_SIZE) as u32);
                }
                sequences.push(SequenceRows {
                    block_table: &tables[*sequence],
                    num_rows: tokens.len(),
                    context_len: tokens.end,
                    leaves: &[],
                });
                adapters.push((*sequence == 0).then_some(ADAPTER));
                steered.push((*sequence == 2).then_some(&steering));
            }
            let batch = ForwardBatch {
                token_ids: &token_ids,
                positions: &positions,
                slot_mapping: &slots,
                sequences: &sequences,
                adapters: &adapters,
                steering: &steered,
                logits_rows: &wanted,
                skip: self.skip,
                local: None,
            };
            let mut logits = Vec::new();
            model.forward(&batch, &mut logits)?;
            let mut rows = logits.chunks_exact(vocab_size);
            for (sequence, tokens) in step {
                let count = if self.only_last { 1 } else { tokens.len() };
                results[*sequence].extend(rows.by_ref().take(count).flatten());
            }
        }
        Ok(results.concat())
    }
}

fn steering<O: Ops>(model: &Decoder<O>) -> Steering {
    let delta = (model.info().num_experts).map(|count| random(102, count));
    Steering {
        router: vec![delta; model.info().num_layers],
        hidden: Some(random(103, model.info().hidden_size)),
    }
}

fn whole() -> Rows {
    (0..LENGTHS.len())
        .map(|index| (index, 0..LENGTHS[index]))
        .collect()
}

/// Steps of at most so many tokens of a sequence.
fn pieces(size: usize) -> Vec<Rows> {
    let step = |step: usize| -> Rows {
        let of_sequence = |(index, tokens): (usize, Range<usize>)| {
            let end = tokens.end.min((step + 1) * size);
            (step * size < end).then_some((index, step * size..end))
        };
        whole().into_iter().filter_map(of_sequence).collect()
    };
    (0..LENGTHS[0].div_ceil(size)).map(step).collect()
}

fn check_model<O: Ops>(
    name: &str,
    model: &mut Decoder<O>,
    files: &ModelFiles,
    (dtype, tolerance): (KvDtype, f32),
) {
    let together = Run {
        steps: &[whole()],
        is_scattered: false,
        only_last: false,
        skip: None,
    };
    let all = together.logits(model).unwrap();
    let hidden = model.hidden_state(20).unwrap();
    let mut reference = load(ReferenceOps::default(), files, dtype);
    assert_near(
        name,
        &all,
        &together.logits(&mut reference).unwrap(),
        tolerance,
    );
    assert_near(
        name,
        &hidden,
        &reference.hidden_state(20).unwrap(),
        tolerance,
    );
    let alone: Vec<Rows> = whole().into_iter().map(|rows| vec![rows]).collect();
    for (steps, is_scattered) in [(alone, false), (pieces(5), true), (pieces(1), true)] {
        let run = Run {
            steps: &steps,
            is_scattered,
            ..together
        };
        assert_same_bits(name, &run.logits(model).unwrap(), &all);
    }
    let last = Run {
        only_last: true,
        ..together
    };
    let vocab_size = model.info().vocab_size;
    let ends = [19, 20, 28].map(|end| &all[(end - 1) * vocab_size..end * vocab_size]);
    assert_same_bits(name, &last.logits(model).unwrap(), &ends.concat());
    check_skipping(name, model, &mut reference, together, tolerance);
    check_refusals(name, model);
    assert_same_bits(name, &together.logits(model).unwrap(), &all);
}

/// Steps without some sub-layers, and the search for which to leave out.
fn check_skipping<O: Ops>(
    name: &str,
    model: &mut Decoder<O>,
    reference: &mut Decoder<ReferenceOps>,
    together: Run<'_>,
    tolerance: f32,
) {
    let num_layers = model.info().num_layers;
    let skip = SkipSet::new(num_layers, [SubLayer::Attention(1), SubLayer::Mlp(1)]);
    let run = Run {
        skip: Some(&skip),
        ..together
    };
    let skipped = run.logits(model).unwrap();
    assert_near(name, &skipped, &run.logits(reference).unwrap(), tolerance);
    // The probes' contexts: what the first sequence's first block holds.
    together.logits(model).unwrap();
    let probe = |token_id| Probe {
        token_id,
        position: BLOCK_SIZE,
        block_table: &[0],
    };
    let costs = SkipCosts {
        attention: 1,
        mlp: 2,
        most: 3,
    };
    let sets = model.skip_sets(&[probe(3), probe(5)], costs, 10).unwrap();
    assert_eq!(sets[0], Some(SkipSet::default()), "{name}");
    for (saved, set) in sets.iter().enumerate() {
        let Some(set) = set else { continue };
        let cost = |sub_layer| match sub_layer {
            SubLayer::Attention(_) => costs.attention,
            SubLayer::Mlp(_) => costs.mlp,
        };
        assert_eq!(set.sub_layers().map(cost).sum::<usize>(), saved, "{name}");
    }
}

/// Batches that do not fit are errors, and leave the model as it was.
fn check_refusals<O: Ops>(name: &str, model: &mut Decoder<O>) {
    let good = SequenceRows {
        block_table: &[3],
        num_rows: 2,
        context_len: 2,
        leaves: &[],
    };
    let fits = ForwardBatch {
        token_ids: &[1, 2],
        positions: &[0, 1],
        slot_mapping: &[48, 49],
        sequences: &[good],
        adapters: &[None],
        steering: &[],
        logits_rows: &[1],
        skip: None,
        local: None,
    };
    let mut logits = Vec::new();
    model.forward(&fits, &mut logits).unwrap();
    let wide = Steering {
        hidden: Some(vec![0.0; model.info().hidden_size + 1]),
        ..Steering::default()
    };
    #[rustfmt::skip]
    let wrong = [
        ForwardBatch { token_ids: &[1, u32::MAX], ..fits },
        ForwardBatch { token_ids: &[1], ..fits },
        ForwardBatch { positions: &[0, 64], ..fits },
        ForwardBatch { positions: &[0], ..fits },
        ForwardBatch { slot_mapping: &[48, NUM_BLOCKS * 16], ..fits },
        ForwardBatch { slot_mapping: &[48, 49, 50], ..fits },
        ForwardBatch { logits_rows: &[2], ..fits },
        ForwardBatch { logits_rows: &[1, 0], ..fits },
        ForwardBatch { adapters: &[Some(AdapterId(99))], ..fits },
        ForwardBatch { steering: &[Some(&wide)], ..fits },
        ForwardBatch { sequences: &[], ..fits },
        ForwardBatch { sequences: &[SequenceRows { block_table: &[NUM_BLOCKS], ..good }], ..fits },
        ForwardBatch { sequences: &[SequenceRows { block_table: &[], ..good }], ..fits },
        ForwardBatch { sequences: &[SequenceRows { context_len: 1, ..good }], ..fits },
        ForwardBatch { sequences: &[SequenceRows { context_len: 17, ..good }], ..fits },
        ForwardBatch { sequences: &[SequenceRows { leaves: &[1], ..good }], ..fits },
        ForwardBatch { sequences: &[SequenceRows { leaves: &[0, 0, 0], ..good }], ..fits },
    ];
    for (index, batch) in wrong.iter().enumerate() {
        let refused = model.forward(batch, &mut logits);
        assert!(refused.is_err(), "{name}: batch {index} is wrong");
    }
    assert!(model.copy_blocks(&[(0, NUM_BLOCKS)]).is_err(), "{name}");
    assert!(model.copy_blocks(&[(NUM_BLOCKS, 0)]).is_err(), "{name}");
}

/// The number of threads changes no bit.
#[test]
fn threads_change_nothing() {
    for (place, _, files) in &models() {
        let run = Run {
            steps: &[whole()],
            is_scattered: true,
            only_last: false,
            skip: None,
        };
        let [one, four] = [1, 4].map(|num_threads| {
            let ops = CpuOps::new(Arc::new(ThreadPool::new(num_threads)));
            run.logits(&mut load(ops, files, KvDtype::F16)).unwrap()
        });
        assert_same_bits(place, &one, &four);
    }
}

/// An operation that fails ends its step with an error, whichever it is, and the next step is right again.
#[test]
fn a_device_that_fails_fails_the_step_alone() {
    for (place, _, files) in &models() {
        let mut model = load(ReferenceOps::default(), files, KvDtype::F16);
        let run = Run {
            steps: &[whole()],
            is_scattered: false,
            only_last: false,
            skip: None,
        };
        let before = model.ops.num_run;
        let expected = run.logits(&mut model).unwrap();
        let count = model.ops.num_run - before;
        assert!(count > 5 * model.info().num_layers, "{place}: {count}");
        for operation in (0..count).step_by(3) {
            model.ops.failing = Some(model.ops.num_run + operation);
            let error = run.logits(&mut model).unwrap_err();
            assert!(error.to_string().contains("the device failed"), "{error}");
        }
        assert_same_bits(place, &run.logits(&mut model).unwrap(), &expected);
    }
}
