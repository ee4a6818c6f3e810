//! Threads that help a slot with what it has to wait for: reads from a disk, and of the next file of a restore. Where no core
//! is idle, they get little done, and the slot does most of the work alone.

use std::num::NonZero;
use std::sync::OnceLock;
#[cfg(feature = "rocksdb")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// So many keys are looked up at a time: enough that taking them costs nothing, few enough that threads end together.
#[cfg(feature = "rocksdb")]
const PIECE: usize = 256;

/// At most so many threads help, all slots of the process together.
const HELPERS: usize = 7;

/// The threads that help; none on a single core.
fn helpers() -> Option<&'static ThreadPool> {
    static HELPING: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let start = || {
        let threads = available_parallelism().map_or(1, NonZero::get).saturating_sub(1).min(HELPERS);
        let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("state-help-{i}"));
        // Without threads to help, slots do everything alone.
        if threads == 0 { None } else { named.build().ok() }
    };
    HELPING.get_or_init(start).as_ref()
}

/// Does two things: at once, if they take long enough for that to be worth waking a thread, which takes microseconds.
pub(crate) fn both(take_long: bool, one: impl FnOnce() + Send, other: impl FnOnce()) {
    match helpers().filter(|_| take_long) {
        Some(helpers) => helpers.in_place_scope(|scope| {
            scope.spawn(|_| one());
            other();
        }),
        None => {
            one();
            other();
        }
    }
}

/// Reads all keys in pieces, which threads take one after the other. The answers are in the order of the keys.
#[cfg(feature = "rocksdb")]
pub(crate) fn in_pieces<T: Send>(keys: &[&[u8]], read: impl Fn(&[&[u8]]) -> T + Sync) -> Vec<T> {
    let Some(helpers) = helpers().filter(|_| keys.len() >= 2 * PIECE) else { return vec![read(keys)] };
    let pieces: Vec<&[&[u8]]> = keys.chunks(PIECE).collect();
    let next = AtomicUsize::new(0);
    let take_pieces = || {
        let mut read_here = Vec::new();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let Some(keys) = pieces.get(piece) else { return read_here };
            read_here.push((piece, read(keys)));
        }
    };
    let threads = helpers.current_num_threads().min(pieces.len() - 1);
    let mut helped: Vec<Vec<(usize, T)>> = (0..threads).map(|_| Vec::new()).collect();
    let mut answers = helpers.in_place_scope(|scope| {
        for of_one in &mut helped {
            scope.spawn(|_| *of_one = take_pieces());
        }
        take_pieces()
    });
    answers.extend(helped.into_iter().flatten());
    answers.sort_unstable_by_key(|(piece, _)| *piece);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done() {
        for take_long in [false, true] {
            let (mut one, mut other) = (0, 0);
            both(take_long, || one = 1, || other = 2);
            assert_eq!((one, other), (1, 2));
        }
    }

    #[cfg(feature = "rocksdb")]
    #[test]
    fn every_key_is_read_once_and_answered_in_its_place() {
        for count in [0, 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 17 * PIECE + 3] {
            let keys: Vec<[u8; 4]> = (0..count as u32).map(u32::to_be_bytes).collect();
            let keys: Vec<&[u8]> = keys.iter().map(<[u8; 4]>::as_slice).collect();
            let read = in_pieces(&keys, |piece| piece.iter().map(|key| key.to_vec()).collect::<Vec<_>>());
            assert_eq!(read.concat(), keys, "{count} keys");
        }
    }
}
