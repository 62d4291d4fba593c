//! Work on items of very different sizes, on the model's own threads: others would have to share the cores with those.

use std::sync::{Mutex, PoisonError};

use ponder_kernels::ThreadPool;

/// `run` of every item, in the items' order.
pub(super) fn map<T: Send, R: Send>(
    pool: &ThreadPool,
    items: Vec<T>,
    run: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let queue = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    pool.run(&|_, _| {
        while let Some((index, item)) = next() {
            let result = run(item);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((index, result));
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
