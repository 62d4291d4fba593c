use std::sync::mpsc;

use super::*;

const SHORT: Duration = Duration::from_millis(20);

fn pool(num_threads: usize, max_queued: usize) -> WorkPool {
    WorkPool::new(PoolOptions {
        num_threads,
        max_queued,
        max_cpu: SHORT,
        is_shared: true,
        ..PoolOptions::default()
    })
}

#[tokio::test]
async fn work_is_done_or_says_why_not() {
    let pool = pool(2, 4);
    assert_eq!(pool.run("adding", 1, None, |_| Ok(1 + 1)).await, Ok(2));
    let stopped = pool
        .run::<()>("adding", 1, None, |_| Err(Stop::Spent))
        .await;
    let message = stopped.unwrap_err().to_string();
    assert!(
        message.starts_with("adding took more than 20ms"),
        "{message}"
    );
    let panicked = pool.run::<()>("adding", 1, None, |_| panic!("{}", "no"));
    assert_eq!(panicked.await, Err(WorkError::Panicked("adding")));
    let late = pool.run("adding", 1, Some(Instant::now()), |budget| budget.check());
    assert_eq!(late.await, Err(WorkError::Deadline("adding")));
    // A thread that saw a panic goes on.
    assert_eq!(pool.run("adding", 1, None, |_| Ok(3)).await, Ok(3));
}

#[tokio::test]
async fn who_leaves_ends_what_runs_and_what_waits() {
    let pool = WorkPool::new(PoolOptions {
        num_threads: 1,
        ..PoolOptions::default()
    });
    let (started, has_started) = mpsc::channel();
    let (ended, has_ended) = mpsc::channel();
    let endless = pool.run("spinning", 1, None, move |budget| {
        started.send(()).unwrap();
        while budget.may_go_on() {}
        ended.send(budget.check()).unwrap();
        Ok(())
    });
    let never = pool.run("nothing", 1, None, |_| -> Result<(), Stop> {
        unreachable!()
    });
    {
        tokio::pin!(endless, never);
        assert!(futures::poll!(&mut endless).is_pending());
        has_started.recv().unwrap();
        assert!(futures::poll!(&mut never).is_pending());
        assert_eq!(pool.owner.0.lock().queue.num_waiting(), 1);
    }
    assert_eq!(has_ended.recv().unwrap(), Err(Stop::Abandoned));
    assert_eq!(pool.owner.0.lock().queue.num_waiting(), 0);
    assert_eq!(pool.run("adding", 1, None, |_| Ok(2)).await, Ok(2));
}

#[tokio::test]
async fn one_tenant_leaves_a_thread_and_places_to_others() {
    let pool = pool(2, 4);
    let spin = |budget: &Budget| {
        while budget.may_go_on() {}
        budget.check()
    };
    let endless = || pool.run("spinning", 1, None, spin);
    // Waiting takes no processor time: what runs first is there for as long as it is looked at.
    let (go, gate) = mpsc::channel();
    let gated = pool.run("spinning", 1, None, move |budget| {
        let () = gate.recv().unwrap();
        spin(budget)
    });
    let mut running = Box::pin(gated);
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(endless())).collect();
    assert!(futures::poll!(&mut running).is_pending());
    while pool.owner.0.lock().queue.num_waiting() > 0 {
        tokio::task::yield_now().await;
    }
    for work in &mut waiting {
        assert!(futures::poll!(work).is_pending());
    }
    // Half of the places are this tenant's; the other thread and places are free.
    let refused = endless().await.unwrap_err();
    assert_eq!(refused, WorkError::Full { max_queued: 4 });
    assert_eq!(pool.run("adding", 2, None, |_| Ok(2)).await, Ok(2));
    go.send(()).unwrap();
    assert_eq!(
        running.await,
        Err(WorkError::Spent {
            what: "spinning",
            max_cpu: SHORT
        })
    );
}
