//! Work on numbered items by several threads, whose results come back in order, with bounded memory.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
};

/// Results that may wait for an earlier one, for each worker.
const AHEAD: u64 = 2;

/// Calls `work` for every number below `count` on as many threads as there are processors, and `take` on the calling
/// thread with each result in order. Ends early when `take` fails.
///
/// # Panics
/// If `work` panics.
pub fn ordered<T: Send, E>(
    count: u64,
    work: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(u64, T) -> Result<(), E>,
) -> Result<(), E> {
    let workers = (thread::available_parallelism().map_or(2, usize::from) as u64).min(count);
    if workers < 2 {
        return (0..count).try_for_each(|number| take(number, work(number)));
    }
    // What was begun stays near what was taken: one slow item must not let the others pile up behind it.
    let taken = &AtomicU64::new(0);
    let (work, next) = (&work, &AtomicU64::new(0));
    thread::scope(|scope| {
        let window = workers * AHEAD;
        let (send, receive) = sync_channel(usize::try_from(window).unwrap_or(1));
        // The calling thread hands out one permit for each item it takes.
        let (permit, permits) = sync_channel::<()>(usize::try_from(2 * window).unwrap_or(1));
        let permits = std::sync::Arc::new(std::sync::Mutex::new(permits));
        for _ in 0..window {
            let _ = permit.try_send(());
        }
        for _ in 0..workers {
            let (send, permits) = (send.clone(), permits.clone());
            scope.spawn(move || {
                loop {
                    let permitted = permits.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if permitted.is_err() || number >= count || send.send((number, work(number))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting = BTreeMap::new();
        while taken.load(Ordering::Relaxed) < count {
            let Ok((number, result)) = receive.recv() else { break };
            waiting.insert(number, result);
            while let Some(result) = waiting.remove(&taken.load(Ordering::Relaxed)) {
                take(taken.fetch_add(1, Ordering::Relaxed), result)?;
                let _ = permit.try_send(());
            }
        }
        // Dropped here, so that the workers end on every way out.
        drop(permit);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_ends_the_work() {
        for count in [0, 1, 2, 7, 500] {
            let mut seen = Vec::new();
            let done = ordered(
                count,
                |number| number * 2,
                |number, twice| -> Result<(), ()> {
                    assert_eq!(twice, number * 2);
                    seen.push(number);
                    Ok(())
                },
            );
            assert_eq!((done, seen), (Ok(()), (0..count).collect::<Vec<_>>()));
        }
        let begun = AtomicU64::new(0);
        let stopped = ordered(
            1000,
            |_| begun.fetch_add(1, Ordering::Relaxed),
            |number, _| if number == 5 { Err("enough") } else { Ok(()) },
        );
        assert_eq!(stopped, Err("enough"));
        assert!(begun.load(Ordering::Relaxed) < 200, "{begun:?}");
    }
}
