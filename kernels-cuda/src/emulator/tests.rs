//! What kernels rely on, tried on kernels of a few lines.

use half::{bf16, f16};

use crate::{Args, Buffer, CudaError, Gpu, Grid, Plain};

fn grid(blocks: u32, threads: u32, shared_bytes: u32) -> Grid {
    Grid {
        blocks: [blocks, 1, 1],
        threads,
        shared_bytes,
    }
}

fn launch(gpu: &Gpu, kernel: &'static str, grid: Grid, args: &Args) -> Result<(), CudaError> {
    // SAFETY: the tests below pass what their kernels take.
    unsafe { gpu.launch(kernel, grid, args) }
}

fn all<T: Plain>(gpu: &Gpu, buffer: &Buffer<T>) -> Vec<T> {
    let mut values = vec![T::default(); buffer.len()];
    gpu.read(buffer, 0, &mut values).unwrap();
    values
}

fn message(result: Result<(), CudaError>) -> String {
    result.unwrap_err().to_string()
}

/// Values of few bits, so that products and sums are exact.
fn small(len: usize, seed: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + seed * 11) % 23) as f32 / 4.0 - 2.5)
        .collect()
}

#[test]
fn tensor_cores_equal_a_plain_product() {
    let gpu = Gpu::for_tests();
    for (kernel, round) in [
        (
            "test_mma_bf16",
            (|x| bf16::from_f32(x).to_f32()) as fn(f32) -> f32,
        ),
        ("test_mma_f16", |x| f16::from_f32(x).to_f32()),
    ] {
        let (a, b) = (small(256, 1), small(128, 2));
        let out = gpu.zeros::<f32>(128).unwrap();
        let inputs = [gpu.upload(&a).unwrap(), gpu.upload(&b).unwrap()];
        let args = Args::new()
            .buffer(&inputs[0])
            .buffer(&inputs[1])
            .buffer(&out);
        launch(&gpu, kernel, grid(1, 32, 0), &args).unwrap();
        let out = all(&gpu, &out);
        for row in 0..16 {
            for column in 0..8 {
                let products = (0..16).map(|k| round(a[row * 16 + k]) * round(b[k * 8 + column]));
                assert_eq!(
                    out[row * 8 + column],
                    products.sum::<f32>(),
                    "{kernel} {row} {column}"
                );
            }
        }
    }
}

#[test]
fn lanes_exchange_values() {
    let gpu = Gpu::for_tests();
    let out = gpu.zeros::<u32>(32 * 6).unwrap();
    launch(
        &gpu,
        "test_shuffles",
        grid(1, 32, 0),
        &Args::new().buffer(&out),
    )
    .unwrap();
    let ballot = (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane);
    let ballot: u32 = ballot.sum();
    for (lane, values) in all(&gpu, &out).chunks(6).enumerate() {
        let lane = lane as u32;
        let down = if lane < 28 { lane + 4 } else { lane };
        let up = if lane.is_multiple_of(8) {
            lane
        } else {
            lane - 1
        };
        let half = if lane < 16 { 120 } else { 376 };
        assert_eq!(values, [70, lane ^ 5, down, up, ballot, half], "{lane}");
    }
}

#[test]
fn blocks_add_their_parts_in_order_also_when_recorded() {
    let gpu = Gpu::for_tests();
    let values = small(1000, 3);
    let input = gpu.upload(&values).unwrap();
    let (parts, counter) = (gpu.zeros::<f32>(5).unwrap(), gpu.zeros::<u32>(1).unwrap());
    let mut out = gpu.zeros::<f32>(1).unwrap();
    let args = Args::new()
        .buffer(&input)
        .value(1000_u32)
        .buffer(&parts)
        .buffer(&counter)
        .buffer(&out);
    let run = || launch(&gpu, "test_split_sum", grid(5, 96, 96 * 4), &args);
    run().unwrap();
    let total: f32 = values.iter().sum();
    assert_eq!(all(&gpu, &out), [total]);

    let graph = gpu.capture(run).unwrap();
    gpu.write(&mut out, 0, &[0.0]).unwrap();
    gpu.replay(&graph).unwrap();
    gpu.replay(&graph).unwrap();
    assert_eq!(all(&gpu, &out), [total]);
    let refused = gpu.capture(|| gpu.upload(&[1_u32]).map(|_| ()));
    assert!(refused.is_err(), "nothing is allocated while capturing");
}

#[test]
fn memory_that_nobody_wrote_is_nan() {
    let gpu = Gpu::for_tests();
    let out = gpu.zeros::<f32>(4).unwrap();
    launch(
        &gpu,
        "test_garbage",
        grid(2, 1, 32),
        &Args::new().buffer(&out),
    )
    .unwrap();
    assert!(all(&gpu, &out).iter().all(|x| x.is_nan()));
}

#[test]
fn a_missed_barrier_is_reported() {
    let gpu = Gpu::for_tests();
    let run = |leaves: u32| {
        let args = Args::new().value(leaves);
        launch(&gpu, "test_missed_barrier", grid(1, 64, 0), &args)
    };
    run(1).unwrap();
    let message = message(run(0));
    assert!(message.contains("test_missed_barrier"), "{message}");
    assert!(
        message.contains("deadlock: 64 of 64 threads wait"),
        "{message}"
    );
    run(1).unwrap();
}

#[test]
fn overruns_are_reported() {
    let gpu = Gpu::for_tests();
    let run = |num_shared: u32, num_out: u32| {
        let out = gpu.zeros::<f32>(8).unwrap();
        let args = Args::new().buffer(&out).value(num_shared).value(num_out);
        launch(&gpu, "test_overrun", grid(1, 1, 32), &args)
    };
    run(8, 8).unwrap();
    let message = message(run(9, 8));
    assert!(
        message.contains("past its 32 bytes of shared memory"),
        "{message}"
    );
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(8, 9)));
    assert!(panic.is_err(), "the buffer is damaged");
}

#[test]
fn asynchronous_copies_come_when_they_are_waited_for() {
    let gpu = Gpu::for_tests();
    let values: Vec<u32> = (1..9).collect();
    let input = gpu.upload(&values).unwrap();
    let out = gpu.zeros::<u32>(12).unwrap();
    let args = Args::new().buffer(&input).buffer(&out);
    launch(&gpu, "test_async", grid(1, 1, 32), &args).unwrap();
    let out = all(&gpu, &out);
    assert_eq!(out[..4], values[..4]);
    assert_eq!(out[4..8], [u32::MAX; 4], "still under way");
    assert_eq!(out[8..], values[4..]);
}

#[test]
fn arguments_are_checked() {
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Pair {
        first: u32,
        second: f32,
    }
    // SAFETY: two numbers.
    unsafe impl Plain for Pair {}

    let gpu = Gpu::for_tests();
    let out = gpu.zeros::<f32>(3).unwrap();
    let pair = Pair {
        first: 2,
        second: 0.5,
    };
    let blocks = Grid {
        blocks: [1, 3, 1],
        threads: 4,
        shared_bytes: 0,
    };
    let args = Args::new().value(pair).buffer(&out);
    launch(&gpu, "test_struct", blocks, &args).unwrap();
    assert_eq!(all(&gpu, &out), [2.5; 3]);

    let wrong = Args::new().value(1_u32).buffer(&out);
    let text = message(launch(&gpu, "test_struct", blocks, &wrong));
    assert!(text.contains("argument 0 has 4 bytes"), "{text}");
    let text = message(launch(&gpu, "test_struct", blocks, &Args::new()));
    assert!(text.contains("0 arguments for 2 parameters"), "{text}");
    let text = message(launch(&gpu, "test_struct", grid(1, 1025, 0), &args));
    assert!(text.contains("blocks of 1025 threads"), "{text}");
}
