use super::*;

const HEAD_DIM: usize = 40;
const NUM_HEADS: usize = 6;
const NUM_KV_HEADS: usize = 2;
const EPS: f32 = 1e-5;

struct Setup {
    kind: RopeKind,
    rotary_dim: usize,
    has_norms: bool,
    freq_factors: Option<Vec<f32>>,
    linear_scale: f32,
}

/// Norm and rotation of one head by their definitions.
fn rotated(setup: &Setup, head: &[f32], norm: &[f32], position: u32) -> Vec<f64> {
    let mut x: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
    if setup.has_norms {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter_mut()
            .zip(norm)
            .for_each(|(x, norm)| *x *= scale * f64::from(*norm));
    }
    let half = setup.rotary_dim / 2;
    for pair in 0..half {
        let (low, high) = match setup.kind {
            RopeKind::Norm => (2 * pair, 2 * pair + 1),
            RopeKind::Neox => (pair, pair + half),
        };
        let factor = setup
            .freq_factors
            .as_ref()
            .map_or(1.0, |factors| factors[pair]);
        let frequency = 10_000_f64.powf(-2.0 * pair as f64 / setup.rotary_dim as f64)
            / f64::from(factor)
            / f64::from(setup.linear_scale);
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        let (a, b) = (x[low], x[high]);
        (x[low], x[high]) = (a * cos - b * sin, a * sin + b * cos);
    }
    x
}

const POSITIONS: [u32; 4] = [0, 99, 7, 7];
const SLOTS: [u32; 4] = [14, 3, u32::MAX, 4];
const SHAPE: KvShape = KvShape {
    num_layers: 2,
    num_blocks: 5,
    block_size: 3,
    num_kv_heads: NUM_KV_HEADS,
    head_dim: HEAD_DIM,
};

/// A step of four rows, one of them without a slot.
fn step(gpu: &Gpu) -> StepBuffers {
    let shape = PlanShape {
        num_heads: NUM_HEADS,
        num_kv_heads: NUM_KV_HEADS,
        head_dim: HEAD_DIM,
        num_blocks: SHAPE.num_blocks,
        block_size: SHAPE.block_size,
        num_multiprocessors: 132,
    };
    let mut plan = AttentionPlan::default();
    let rows = [AttentionRows {
        block_table: &[0, 1],
        num_rows: 4,
        context_len: 4,
        leaves: &[],
    }];
    plan.plan(&shape, &rows).unwrap();
    let inputs = StepInputs {
        token_ids: None,
        positions: &POSITIONS,
        slot_mapping: &SLOTS,
        logits_rows: &[],
        num_rows: 4,
        num_logits_rows: 0,
    };
    let mut step = StepBuffers::default();
    step.upload(gpu, &shape, &inputs, &plan).unwrap();
    step
}

fn check(setup: &Setup) {
    let gpu = Gpu::for_tests();
    let mut cache = KvCache::new(&gpu, SHAPE).unwrap();
    let (factors, scale) = (setup.freq_factors.as_deref(), setup.linear_scale);
    let table = RopeTable::new(&gpu, setup.rotary_dim, 100, 10_000.0, factors, scale, 1.0).unwrap();
    let norms = [5, 6].map(|seed| random(seed, HEAD_DIM));
    let buffers = norms.each_ref().map(|norm| gpu.upload(norm).unwrap());
    let widths = [NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS].map(|heads| heads * HEAD_DIM);
    let values = [0, 1, 2].map(|part| random(30 + part as u64, 4 * widths[part]));
    let mut parts: [Rows; 3] = Default::default();
    for ((rows, width), values) in parts.iter_mut().zip(widths).zip(&values) {
        rows.reshape(&gpu, 4, width).unwrap();
        gpu.write(rows.buffer_mut().unwrap(), 0, values).unwrap();
    }
    let rotation = Rotation {
        table: &table,
        kind: setup.kind,
        q_norm: setup.has_norms.then_some(&buffers[0]),
        k_norm: setup.has_norms.then_some(&buffers[1]),
        eps: EPS,
    };
    let step = step(&gpu);
    rotate_and_cache(&gpu, &rotation, &step, &mut cache, 1, parts.each_mut()).unwrap();

    let mut q = vec![0.0; 4 * widths[0]];
    gpu.read(parts[0].buffer().unwrap(), 0, &mut q).unwrap();
    let heads = q.chunks(HEAD_DIM).zip(values[0].chunks(HEAD_DIM));
    for (index, (got, head)) in heads.enumerate() {
        let expected = rotated(setup, head, &norms[0], POSITIONS[index / NUM_HEADS]);
        for (got, expected) in got.iter().zip(expected) {
            let error = (f64::from(*got) - expected).abs();
            assert!(error < 1e-5, "{got}, not {expected}");
        }
    }
    let [_, k, v] = &values;
    check_cache(&gpu, &cache, setup, &norms[1], [k, v]);
}

/// Slots of rows have their keys and values; other slots, and other layers, stay zero.
fn check_cache(gpu: &Gpu, cache: &KvCache, setup: &Setup, norm: &[f32], [k, v]: [&[f32]; 2]) {
    for (row, slot) in SLOTS.into_iter().enumerate() {
        for head in (0..NUM_KV_HEADS).filter(|_| slot != u32::MAX) {
            let at = (row * NUM_KV_HEADS + head) * HEAD_DIM;
            let key = rotated(setup, &k[at..at + HEAD_DIM], norm, POSITIONS[row]);
            let [keys, cached] = cache.read(gpu, 1, head, &[slot]).unwrap();
            for (got, expected) in keys.iter().zip(key) {
                let got = f64::from(f16::from_bits(*got).to_f32());
                assert!((got - expected).abs() <= 1e-3 * expected.abs().max(1.0));
            }
            let value = v[at..at + HEAD_DIM].iter();
            let value: Vec<u16> = value.map(|x| f16::from_f32(*x).to_bits()).collect();
            assert_eq!(cached, value);
        }
    }
    for (layer, slots) in [(1, [0, 5, 13]), (0, [14, 3, 4])] {
        for head in 0..NUM_KV_HEADS {
            let [keys, values] = cache.read(gpu, layer, head, &slots).unwrap();
            assert!(keys.iter().chain(&values).all(|bits| *bits == 0));
        }
    }
}

#[test]
fn heads_are_normed_rotated_and_cached() {
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        check(&Setup {
            kind,
            rotary_dim: HEAD_DIM,
            has_norms: false,
            freq_factors: None,
            linear_scale: 2.0,
        });
        check(&Setup {
            kind,
            rotary_dim: 16,
            has_norms: true,
            freq_factors: Some(vec![1.0, 1.0, 2.0, 3.5, 4.0, 4.0, 8.0, 8.0]),
            linear_scale: 1.0,
        });
    }
}
