//! Routing by every family's convention, experts, and the shared expert's weight.

use std::ops::Range;
use std::sync::Arc;

use ponder_kernels::{DType, Gating, Glu, GroupScore, Groups, Scoring};

use super::{Case, FLOATS, activations, bytes, check, host, random, rows};
use crate::model::moe::ExpertLoad;
use crate::model::ops::{ExpertWeights, Needs, Ops, OpsError};

const NUM_ROWS: usize = 23;
const EXPERTS: usize = 8;
const HIDDEN: usize = 48;
const INNER: usize = 64;

pub(super) fn check_all<O: Ops>(ops: &mut O) {
    for (index, gating) in gatings().into_iter().enumerate() {
        for has_bias in [false, true] {
            let case = Experts {
                gating,
                has_bias,
                is_biased: false,
                glu: Glu::Silu,
            };
            check(ops, &format!("experts, convention {index}"), 1e-4, &case);
        }
    }
    let needs = Needs {
        expert_biases: true,
        ..Needs::NONE
    };
    if ops.lacks(needs).is_none() {
        let case = Experts {
            gating: gatings()[1],
            has_bias: false,
            is_biased: true,
            glu: Glu::ClampedSwish,
        };
        check(ops, "experts with biases", 1e-4, &case);
    }
    check(ops, "weighted", FLOATS, &Weighted);
    count(ops).expect("experts are counted");
    ties(ops).expect("equal scores are routed");
}

fn gatings() -> Vec<Gating> {
    let softmax = Gating {
        num_experts_per_tok: 2,
        scoring: Scoring::Softmax,
        normalise: false,
        scale: 1.0,
        groups: None,
    };
    let groups = |num_chosen, score| {
        Some(Groups {
            count: 4,
            num_chosen,
            score,
        })
    };
    vec![
        softmax,
        Gating {
            normalise: true,
            num_experts_per_tok: 3,
            ..softmax
        },
        Gating {
            scale: 16.0,
            groups: groups(2, GroupScore::Best),
            ..softmax
        },
        Gating {
            scoring: Scoring::Sigmoid,
            normalise: true,
            scale: 2.5,
            groups: groups(3, GroupScore::BestTwo),
            num_experts_per_tok: 4,
        },
        Gating {
            num_experts_per_tok: EXPERTS,
            ..softmax
        },
    ]
}

struct Experts {
    gating: Gating,
    /// The choice is.
    has_bias: bool,
    /// Their products are.
    is_biased: bool,
    glu: Glu,
}

impl Case for Experts {
    fn num_units(&self) -> usize {
        NUM_ROWS
    }

    /// Gates, choices and the experts' results of each row.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let matrix = |seed, shape: [usize; 3]| {
            let values = random(seed, shape.iter().product());
            let bias = random(seed + 20, shape[0] * shape[1]);
            let bias = self.is_biased.then_some(bias);
            ops.experts(DType::F32, &bytes(&values), shape, bias)
        };
        let gate = matrix(50, [EXPERTS, INNER, HIDDEN])?;
        let up = matrix(51, [EXPERTS, INNER, HIDDEN])?;
        let down = matrix(52, [EXPERTS, HIDDEN, INNER])?;
        let bias = ops.vector(random(53, EXPERTS))?;
        let part = |seed, width: usize| {
            random(seed, NUM_ROWS * width)[units.start * width..units.end * width].to_vec()
        };
        let x = activations(ops, &part(54, HIDDEN), HIDDEN)?;
        let logits = rows(ops, &part(55, EXPERTS), EXPERTS)?;
        let mut out = rows(ops, &part(56, HIDDEN), HIDDEN)?;
        let mut routing = ops.routing(true)?;
        let bias = self.has_bias.then_some(&bias);
        ops.route(&self.gating, &logits, bias, &mut routing)?;
        let weights = ExpertWeights {
            gate: &gate,
            up: &up,
            down: &down,
            glu: self.glu,
        };
        ops.add_experts(&x, &mut routing, &weights, 0.7, &mut out)?;
        let read = ops.read_routing(3, &logits, &routing)?;
        assert_eq!(read.layer, 3);
        assert_eq!(read.router_logits, part(55, EXPERTS));
        let chosen = self.gating.num_experts_per_tok;
        let out = host(ops, &out)?;
        let of_row = |row: usize| {
            let places = row * chosen..(row + 1) * chosen;
            let experts = read.experts[places.clone()]
                .iter()
                .map(|expert| *expert as f32);
            let gates = read.gates[places].iter().copied();
            let values = out[row * HIDDEN..(row + 1) * HIDDEN].iter().copied();
            experts.chain(gates).chain(values).collect::<Vec<f32>>()
        };
        Ok((0..units.len()).flat_map(of_row).collect())
    }
}

struct Weighted;

impl Case for Weighted {
    fn num_units(&self) -> usize {
        9
    }

    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let part = |seed, width: usize| {
            random(seed, 9 * width)[units.start * width..units.end * width].to_vec()
        };
        let (h, weights) = (rows(ops, &part(57, 7), 7)?, rows(ops, &part(58, 1), 1)?);
        let mut out = rows(ops, &part(59, 7), 7)?;
        ops.add_weighted(&h, &weights, 0.4, &mut out)?;
        host(ops, &out)
    }
}

fn count<O: Ops>(ops: &mut O) -> Result<(), OpsError> {
    let gating = gatings()[1];
    let logits = rows(ops, &random(60, NUM_ROWS * EXPERTS), EXPERTS)?;
    let mut routing = ops.routing(false)?;
    ops.route(&gating, &logits, None, &mut routing)?;
    let read = ops.read_routing(1, &logits, &routing)?;
    let load = Arc::new(ExpertLoad::new(vec![1, 4], EXPERTS));
    ops.count_experts(&routing, 1, &load)?;
    for (layer, expert, tokens) in load.counts() {
        let of_expert = read.experts.iter().filter(|e| **e as usize == expert);
        let expected = if layer == 1 { of_expert.count() } else { 0 };
        assert_eq!(tokens, expected as u64, "expert {expert} of layer {layer}");
    }
    Ok(())
}

fn ties<O: Ops>(ops: &mut O) -> Result<(), OpsError> {
    let logits = rows(ops, &[0.5; EXPERTS], EXPERTS)?;
    let mut routing = ops.routing(false)?;
    ops.route(&gatings()[1], &logits, None, &mut routing)?;
    assert_eq!(ops.read_routing(0, &logits, &routing)?.experts, [0, 1, 2]);
    Ok(())
}
