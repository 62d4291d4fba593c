//! The device's tokens against the host's sampler.

mod cases;
mod reference;

use proptest::prelude::*;

use super::*;
use cases::{case, normal, nuclei};

fn rows(gpu: &Gpu, logits: &[f32], vocab: usize) -> Rows {
    let mut rows = Rows::default();
    rows.reshape(gpu, logits.len() / vocab, vocab).unwrap();
    gpu.write(rows.buffer_mut().unwrap(), 0, logits).unwrap();
    rows
}

fn sample(
    gpu: &Gpu,
    logits: &[f32],
    vocab: usize,
    specs: &[SlotSpec<'_>],
    masks: &[&[u32]],
) -> Vec<SampledRow> {
    let rows = rows(gpu, logits, vocab);
    let mut buffers = SampleBuffers::new(gpu, specs.len(), vocab).unwrap();
    buffers.sample(gpu, &rows, specs, masks).unwrap();
    let sampled = buffers.read(gpu).unwrap();
    let mut unchanged = vec![0.0; logits.len()];
    gpu.read(rows.buffer().unwrap(), 0, &mut unchanged).unwrap();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&unchanged), bits(logits), "the logits stay");
    sampled
}

fn expected(spec: &SlotSpec<'_>, logits: &[f32], vocab: usize, masks: &[&[u32]]) -> SampledRow {
    let row = |row: u32| &logits[row as usize * vocab..][..vocab];
    match spec {
        SlotSpec::Sample(spec) => {
            let mask = spec.mask.map(|mask| masks[mask as usize]);
            reference::sampled(spec, mask, row(spec.row))
        }
        SlotSpec::Score(spec) => reference::scored(spec, row(spec.row)),
    }
}

/// Both, with NaN equal to itself.
fn is_same(a: &SampledRow, b: &SampledRow) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_device_samples_as_the_host((vocab, logits, masks, owned) in case()) {
        let gpu = Gpu::for_tests();
        let specs: Vec<_> = owned.iter().map(|owned| owned.spec(vocab)).collect();
        let masks: Vec<&[u32]> = masks.iter().map(Vec::as_slice).collect();
        let sampled = sample(&gpu, &logits, vocab, &specs, &masks);
        for (spec, sampled) in specs.iter().zip(&sampled) {
            let expected = expected(spec, &logits, vocab, &masks);
            if *sampled == SampledRow::Host {
                // So small a vocabulary fits: only what is likely among NaNs is left to the host.
                let SlotSpec::Sample(row) = spec else { panic!("{spec:?}") };
                prop_assert!(row.num_alternatives.is_some(), "{:?}", row);
                let raw = &logits[row.row as usize * vocab..][..vocab];
                prop_assert!(raw.iter().any(|x| !x.is_finite()));
                continue;
            }
            prop_assert!(is_same(sampled, &expected), "{:?} is not {:?}: {:?}", sampled, expected, spec);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// More candidates than are looked at first, with every way to measure what they weigh
    /// together.
    #[test]
    fn nuclei_of_hundreds_of_tokens(
        seed in any::<u64>(),
        rows in prop::collection::vec(nuclei(4), 40),
    ) {
        let gpu = Gpu::for_tests();
        let (vocab, mut state) = (1300, seed | 1);
        let spreads = [0.5, 1.0, 1.5, 2.0].map(|spread| [spread; 1300]).concat();
        let logits: Vec<f32> = spreads.iter().map(|spread| normal(&mut state) * spread).collect();
        let specs: Vec<_> = rows.into_iter().map(SlotSpec::Sample).collect();
        let sampled = sample(&gpu, &logits, vocab, &specs, &[]);
        for (spec, sampled) in specs.iter().zip(&sampled) {
            prop_assert_eq!(sampled, &expected(spec, &logits, vocab, &[]), "{:?}", spec);
        }
    }
}

#[test]
fn sums_of_weights_are_the_hosts_bit_by_bit() {
    let gpu = Gpu::for_tests();
    for vocab in [5, 1000, 1027, 4096, 4099] {
        let values = random_rows(4, vocab, 5.0);
        let logits = rows(&gpu, &values, vocab);
        let mut buffers = SampleBuffers::new(&gpu, 4, vocab).unwrap();
        let score = |row| ScoreRow {
            row,
            token_id: 0,
            num_top: 0,
        };
        let specs: Vec<_> = (0..4).map(|row| SlotSpec::Score(score(row))).collect();
        buffers.sample(&gpu, &logits, &specs, &[]).unwrap();
        buffers.read(&gpu).unwrap();
        for (row, header) in values.chunks(vocab).zip(buffers.answers.chunks(8)) {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let total = reference::weigh(row, max).2;
            let device = u64::from(header[4]) | u64::from(header[5]) << 32;
            assert_eq!(device, total.to_bits(), "{vocab}");
        }
    }
}

#[test]
fn a_sliver_belongs_to_the_last_token_that_weighs_something() {
    let gpu = Gpu::for_tests();
    let (vocab, end) = (2600, 2570);
    let mut logits = random_rows(8, vocab, 3.0);
    for row in logits.chunks_mut(vocab) {
        row[end..].fill(f32::NEG_INFINITY);
    }
    let specs: Vec<_> = (0..8)
        .map(|row| {
            SlotSpec::Sample(SampleRow {
                temperature: 1.0,
                uniform: 1.0,
                ..SampleRow::greedy(row)
            })
        })
        .collect();
    let sampled = sample(&gpu, &logits, vocab, &specs, &[]);
    let mut slivers = 0;
    for (spec, sampled) in specs.iter().zip(&sampled) {
        assert_eq!(*sampled, expected(spec, &logits, vocab, &[]));
        let SampledRow::Token { token_id, .. } = sampled else {
            panic!("{sampled:?}");
        };
        slivers += u32::from(*token_id as usize == end - 1);
    }
    assert!(slivers > 0, "some row ends in a sliver");
}

#[test]
fn a_bias_brings_a_token_back_into_range() {
    let gpu = Gpu::for_tests();
    let logits = [f32::NEG_INFINITY; 50];
    let bias = [(31, 1.0), (30, 2.0)];
    let spec = SlotSpec::Sample(SampleRow {
        logit_bias: &bias,
        num_logprobs: Some(3),
        ..SampleRow::greedy(0)
    });
    let sampled = sample(&gpu, &logits, 50, std::slice::from_ref(&spec), &[]);
    assert_eq!(sampled[0], expected(&spec, &logits, 50, &[]));
    assert!(matches!(
        sampled[0],
        SampledRow::Token {
            token_id: 30,
            logprobs: None,
            ..
        }
    ));
}

fn random_rows(num_rows: usize, vocab: usize, spread: f32) -> Vec<f32> {
    let mut state = 7;
    (0..num_rows * vocab)
        .map(|_| normal(&mut state) * spread)
        .collect()
}

/// Two chunks more than the candidates' list holds.
const LARGE_VOCAB: usize = 10 * CHUNK + 17;

#[test]
fn large_vocabularies_are_sampled_or_left_to_the_host() {
    let gpu = Gpu::for_tests();
    let vocab = LARGE_VOCAB;
    let spreads = [0.0, 0.3, 1.0, 3.0];
    let logits: Vec<f32> = spreads
        .iter()
        .flat_map(|spread| random_rows(1, vocab, *spread))
        .collect();
    let base = SampleRow {
        temperature: 1.0,
        uniform: 0.7,
        ..SampleRow::greedy(0)
    };
    let mut specs = Vec::new();
    for row in 0..spreads.len() as u32 {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 0.3, 0.0),
            (50, 1.0, 0.0),
            (1000, 0.9, 0.01),
            (5000, 0.99, 0.0),
            (0, 0.9, 0.02),
        ] {
            specs.push(SlotSpec::Sample(SampleRow {
                row,
                top_k,
                top_p,
                min_p,
                num_logprobs: Some(20),
                ..base.clone()
            }));
        }
    }
    let sampled = sample(&gpu, &logits, vocab, &specs, &[]);
    let mut on_host = vec![0; spreads.len()];
    for (index, (spec, sampled)) in specs.iter().zip(&sampled).enumerate() {
        match sampled {
            SampledRow::Host => on_host[index / 7] += 1,
            _ => assert!(
                is_same(sampled, &expected(spec, &logits, vocab, &[])),
                "{spec:?}"
            ),
        }
    }
    // Equal logits share a bucket that does not fit; flat rows have more than 8192 tokens in their
    // nucleus. Rows as models have them stay on the device.
    assert_eq!(on_host, [7, 2, 2, 0]);
}

#[test]
fn a_graph_samples_again_from_new_logits_and_specs() {
    let gpu = Gpu::for_tests();
    let vocab = 1500;
    let first = random_rows(2, vocab, 4.0);
    let mut logits = rows(&gpu, &first, vocab);
    let mut buffers = SampleBuffers::new(&gpu, 4, vocab).unwrap();
    let any = SampleShape::any(4);
    let shape = buffers.prepare(&gpu, &[], &[], 2, 4).unwrap();
    assert!(any.covers(shape));
    let graph = gpu.capture(|| buffers.launch(&gpu, &logits, any)).unwrap();

    for seed in 0..3_u32 {
        let values: Vec<f32> = first
            .iter()
            .map(|x| (x * (seed + 1) as f32).sin() * 9.0)
            .collect();
        gpu.write(logits.buffer_mut().unwrap(), 0, &values).unwrap();
        let specs: Vec<_> = (0..2 + seed % 2)
            .map(|row| {
                SlotSpec::Sample(SampleRow {
                    temperature: 0.8,
                    top_p: 0.9,
                    uniform: 0.1 + f64::from(seed) * 0.3,
                    num_logprobs: Some(2),
                    ..SampleRow::greedy(row % 2)
                })
            })
            .collect();
        let shape = buffers.prepare(&gpu, &specs, &[], 2, 4).unwrap();
        assert!(any.covers(shape));
        gpu.replay(&graph).unwrap();
        let sampled = buffers.read(&gpu).unwrap();
        assert_eq!(sampled.len(), specs.len());
        for (spec, sampled) in specs.iter().zip(&sampled) {
            assert_eq!(*sampled, expected(spec, &values, vocab, &[]));
        }
    }
}

#[test]
fn greedy_rows_need_one_launch() {
    let gpu = Gpu::for_tests();
    let vocab = 3000;
    let values = random_rows(5, vocab, 2.0);
    let logits = rows(&gpu, &values, vocab);
    let mut buffers = SampleBuffers::new(&gpu, 5, vocab).unwrap();
    let specs: Vec<_> = (0..5)
        .map(|row| SlotSpec::Sample(SampleRow::greedy(row)))
        .collect();
    for _ in 0..2 {
        let shape = buffers.prepare(&gpu, &specs, &[], 5, 5).unwrap();
        assert_eq!((shape.has_weights, shape.has_raw), (false, false));
        buffers.launch(&gpu, &logits, shape).unwrap();
        let sampled = buffers.read(&gpu).unwrap();
        for (spec, sampled) in specs.iter().zip(&sampled) {
            assert_eq!(*sampled, expected(spec, &values, vocab, &[]));
        }
    }
}

#[test]
fn what_is_not_there_is_refused_and_what_does_not_fit_is_the_hosts() {
    let gpu = Gpu::for_tests();
    let values = random_rows(1, 100, 2.0);
    let logits = rows(&gpu, &values, 100);
    let mut buffers = SampleBuffers::new(&gpu, 2, 100).unwrap();
    let greedy = SampleRow::greedy;
    let masked = SampleRow {
        mask: Some(1),
        ..greedy(0)
    };
    let score = ScoreRow {
        row: 0,
        token_id: 100,
        num_top: 0,
    };
    for spec in [
        SlotSpec::Sample(greedy(1)),
        SlotSpec::Sample(masked),
        SlotSpec::Score(score),
    ] {
        assert!(buffers.sample(&gpu, &logits, &[spec], &[&[]]).is_err());
    }
    let specs = vec![SlotSpec::Sample(greedy(0)); 3];
    assert!(buffers.sample(&gpu, &logits, &specs, &[]).is_err());
    assert!(SampleBuffers::new(&gpu, 1, (1 << 19) + 1).is_err());

    let twice = SampleRow {
        logit_bias: &[(3, 1.0), (3, 1.0)],
        ..greedy(0)
    };
    let many = SampleRow {
        num_logprobs: Some(MAX_TOP + 1),
        ..greedy(0)
    };
    let specs = [twice, many].map(SlotSpec::Sample);
    buffers.sample(&gpu, &logits, &specs, &[]).unwrap();
    assert_eq!(
        buffers.read(&gpu).unwrap(),
        [SampledRow::Host, SampledRow::Host]
    );
}

#[test]
fn weights_are_those_of_the_cpu_kernels() {
    let logits = random_rows(1, 2500, 6.0);
    let (weights, sums, total) = reference::weigh(&logits, 20.0);
    let (mut cpu_weights, mut cpu_sums) = (Vec::new(), Vec::new());
    let cpu_total = ponder_kernels::logits::weigh(&logits, 20.0, &mut cpu_weights, &mut cpu_sums);
    // Only processors without fused multiply-add differ.
    let is_fused = !cfg!(target_arch = "x86_64") || weights == cpu_weights;
    assert!(is_fused || !has_fused_multiply_add());
    if weights == cpu_weights {
        assert_eq!((sums, total), (cpu_sums, cpu_total));
    }
}

#[cfg(target_arch = "x86_64")]
fn has_fused_multiply_add() -> bool {
    std::env::var_os("PONDER_ISA").is_none() && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_fused_multiply_add() -> bool {
    false
}
