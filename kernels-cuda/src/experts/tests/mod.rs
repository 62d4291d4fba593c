mod products;
mod routing;
mod tables;

use ponder_kernels::{Gating, Routes, Scoring, ThreadPool};

use super::{LiveRows, RouteParams, Routing, route};
use crate::rows::testing::{random, read, rows_of};
use crate::{Buffer, Gpu, Plain};

/// Softmax over all, normalised.
fn plain(num_experts_per_tok: usize) -> Gating {
    Gating {
        num_experts_per_tok,
        scoring: Scoring::Softmax,
        normalise: true,
        scale: 1.0,
        groups: None,
    }
}

/// Logits that no two experts of a row share: differences are far above what rounding does.
fn distinct_logits(seed: u64, num_rows: usize, num_experts: usize) -> Vec<f32> {
    let mut logits = Vec::with_capacity(num_rows * num_experts);
    for row in 0..num_rows {
        let keys = random(seed + row as u64, num_experts);
        let mut order: Vec<usize> = (0..num_experts).collect();
        order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
        let mut values = vec![0.0; num_experts];
        for (rank, expert) in order.into_iter().enumerate() {
            values[expert] = 6.0 * rank as f32 / num_experts as f32 - 3.0;
        }
        logits.extend(values);
    }
    logits
}

/// Routes on the device.
fn routed(
    gpu: &Gpu,
    gating: &Gating,
    logits: &[f32],
    num_experts: usize,
    bias: Option<&[f32]>,
    tile_height: usize,
) -> Routing {
    let mut routing = Routing::default();
    let bias = bias.map(|bias| gpu.upload(bias).expect("memory"));
    let logits = rows_of(gpu, logits, num_experts);
    let params = RouteParams {
        bias: bias.as_ref(),
        ..RouteParams::new(gating, tile_height)
    };
    route(gpu, &params, &logits, &mut routing).expect("launch");
    routing
}

/// Routes on the processor.
fn expected(gating: &Gating, logits: &[f32], num_experts: usize, bias: Option<&[f32]>) -> Routes {
    let mut routes = Routes::default();
    routes.plan(&ThreadPool::new(1), gating, logits, num_experts, bias);
    routes
}

fn values<T: Plain>(gpu: &Gpu, buffer: &Option<Buffer<T>>, len: usize) -> Vec<T> {
    read(gpu, buffer.as_ref().expect("routed"), len)
}
