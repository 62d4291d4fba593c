//! How a decode step of smollm2-135m scales with the number of threads: measured with the threads
//! that this machine has, predicted for more.
//!
//!     cargo bench -p ponder-kernels --bench threads
//!
//! **The prediction.** A section of `W` with one thread (measured here) that is cut into `n` equal
//! items takes `W * ceil(n / k) / n` with `k` threads, plus what the threads cost each other. All
//! sections are slowed or sped up alike so that one thread reaches the reference's rate. Memory is
//! not a limit: the reference's prefill scales 13 times, and one thread reads a tenth of what such
//! a machine's memory gives.
//!
//! **What threads cost each other** is taken from the reference, a machine with 16 cores, as it was
//! when every section woke all threads: `k * k` times a constant, since each thread took its
//! chunks, its start and its end from lines that all the others used too. The constant is fitted to
//! the reference at 8 and 16 threads. For the chosen numbers of threads there are two predictions:
//! the same cost, as if the pool were as it was, and a cost per thread of `cost::JOIN_COST`, since
//! each thread has a line of its own now.

mod step;

use std::time::{Duration, Instant};

use ponder_kernels::cost::{JOIN_COST, Nanoseconds, Team};
use ponder_kernels::{ThreadPool, isa};

use step::{Section, Step};

/// Tokens a second at batch 1 by threads, on 16 cores, with all threads woken for each section.
const REFERENCE: [(usize, f64); 5] = [(1, 113.0), (2, 161.0), (4, 425.0), (8, 499.0), (16, 323.0)];
/// Threads from which on the reference says what waking costs; below, noise is as large.
const FITTED_FROM: usize = 8;
/// Steps of a measurement.
const NUM_STEPS: usize = 400;
/// Empty sections of a measurement.
const NUM_SECTIONS: usize = 20_000;

/// One kind of section of a step.
struct Modelled {
    section: Section,
    /// With one thread, all of its calls together.
    seconds: f64,
}

impl Modelled {
    /// Seconds with `num_threads(work, items)` threads that cost `overhead(threads)` seconds a
    /// call.
    fn seconds(
        &self,
        step: &Step,
        num_threads: &dyn Fn(Nanoseconds, usize) -> usize,
        overhead: &dyn Fn(usize) -> f64,
    ) -> f64 {
        let Some((work, num_items)) = step.work(self.section) else {
            return self.seconds;
        };
        let threads = num_threads(work, num_items);
        let share = num_items.div_ceil(threads) as f64 / num_items as f64;
        let overhead = if threads > 1 { overhead(threads) } else { 0.0 };
        self.seconds * share + self.section.num_calls() as f64 * overhead
    }
}

/// The fastest of many runs, section by section.
fn measure(step: &mut Step, pool: &ThreadPool) -> (f64, Vec<Modelled>) {
    let mut best = [Duration::MAX; Section::ALL.len()];
    let mut total = Duration::MAX;
    for _ in 0..NUM_STEPS {
        let mut times = [Duration::ZERO; Section::ALL.len()];
        let started = Instant::now();
        step.run(pool, &mut times);
        total = total.min(started.elapsed());
        for (best, time) in best.iter_mut().zip(times) {
            *best = time.min(*best);
        }
    }
    let sections = Section::ALL.into_iter().zip(best);
    let sections = sections.map(|(section, time)| Modelled {
        section,
        seconds: time.as_secs_f64(),
    });
    (total.as_secs_f64(), sections.collect())
}

/// What a section of `busy` a thread costs beside it, in seconds: the fastest and the median.
fn join_seconds(pool: &ThreadPool, num_threads: usize, busy: Duration) -> (f64, f64) {
    let mut times: Vec<f64> = (0..NUM_SECTIONS)
        .map(|_| {
            let started = Instant::now();
            pool.run_on(num_threads, &|_, _| {
                let started = Instant::now();
                while started.elapsed() < busy {}
            });
            (started.elapsed().saturating_sub(busy)).as_secs_f64()
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// The cost of `k * k` that comes closest to the reference where all threads are woken.
fn fit(predict: impl Fn(f64, usize) -> f64) -> f64 {
    let fitted = || REFERENCE.into_iter().filter(|(k, _)| *k >= FITTED_FROM);
    let error = |nanoseconds: f64| -> f64 {
        let errors = fitted().map(|(k, rate)| (predict(nanoseconds * 1e-9, k) / rate).ln());
        errors.map(|error| error * error).sum()
    };
    let tried = (0..=2000).map(|tenth| f64::from(tenth) / 10.0);
    let best = tried.min_by(|a, b| error(*a).total_cmp(&error(*b)));
    best.unwrap_or_default() * 1e-9
}

/// Prints what is measured here and returns the sections with one thread.
fn measure_here(step: &mut Step, all: &ThreadPool) -> Vec<Modelled> {
    let (seconds, sections) = measure(step, &ThreadPool::new(1));
    println!("measured here ({}):", isa());
    println!("   1 thread   {:>7.1} tok/s", 1.0 / seconds);
    let num_cores = all.num_threads();
    if num_cores > 1 {
        let (seconds, _) = measure(step, all);
        println!("  {num_cores:>2} threads  {:>7.1} tok/s", 1.0 / seconds);
        let (best, median) = join_seconds(all, num_cores, Duration::from_micros(3));
        let (best, median) = (best * 1e6, median * 1e6);
        println!("  a section of {num_cores} threads costs {best:.2} µs (median {median:.2})");
    }
    sections
}

/// Prints the reference beside the predictions for its machine.
fn predict(step: &Step, sections: &[Modelled]) {
    let rate = |num_threads: &dyn Fn(Nanoseconds, usize) -> usize,
                overhead: &dyn Fn(usize) -> f64| {
        let seconds = sections.iter();
        let seconds = seconds.map(|section| section.seconds(step, num_threads, overhead));
        1.0 / seconds.sum::<f64>()
    };
    let shared = |cost: f64| move |k: usize| cost * (k * k) as f64;
    let own = |k: usize| JOIN_COST.0 * 1e-9 * (k - 1) as f64;
    let woken = |cost: f64, k: usize| rate(&|_, _| k, &shared(cost));
    let cost = fit(woken);
    println!(
        "\npredicted for 16 cores, tok/s (what threads cost: k * k * {:.0} ns, or {:.0} ns each)",
        cost * 1e9,
        JOIN_COST.0
    );
    println!("threads   reference   all woken   chosen, same cost   chosen, own lines");
    for (k, reference) in REFERENCE {
        let chosen = |work: Nanoseconds, items: usize| Team::new(k).threads_for(work, items);
        println!(
            "{k:>7} {reference:>11.0} {:>11.0} {:>19.0} {:>19.0}",
            woken(cost, k),
            rate(&chosen, &shared(cost)),
            rate(&chosen, &own)
        );
    }
}

fn print_sections(step: &Step, sections: &[Modelled]) {
    println!("\nthreads of each section, of 16:");
    for section in sections {
        let work = step.work(section.section);
        let threads = work.map_or(1, |(work, items)| Team::new(16).threads_for(work, items));
        let microseconds = section.seconds * 1e6 / section.section.num_calls() as f64;
        let name = format!("{:?}", section.section);
        println!("  {name:<10} {threads:>3}   ({microseconds:.1} µs with one)");
    }
}

fn main() {
    let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let all = ThreadPool::new(num_cores);
    let mut step = Step::new(&all);
    let mut sections = measure_here(&mut step, &all);
    let measured: f64 = sections.iter().map(|section| section.seconds).sum();
    let scale = 1.0 / (REFERENCE[0].1 * measured);
    for section in &mut sections {
        section.seconds *= scale;
    }
    predict(&step, &sections);
    print_sections(&step, &sections);
}
