//! Which worker gets which slot of a job, and how many slots a job may have. Pure.
//!
//! Slots are spread: each comes from whoever has most left. A slot that ran before goes back to where it was, if that worker
//! has room: there its state may still be on the local disk, its connections stand, its component is compiled. Unless that
//! worker refused the job for want of memory and another one has more of it left: then that one comes first.

use std::collections::BTreeSet;

/// A worker, by what matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered<'a> {
    /// Which.
    pub id: &'a str,
    /// How many of its slots nothing runs in.
    pub free: u32,
    /// How much more of its memory jobs may hold, as far as is known.
    pub left_bytes: u64,
}

/// For each slot, the index of the worker that it goes to; fewer, if there are not enough. `before`: where the job's slots
/// were, by slot. `refused`: the workers that had no memory for the job when it was there.
pub fn place(workers: &[Offered<'_>], slots: u32, before: &[String], refused: &BTreeSet<String>) -> Vec<usize> {
    let mut free: Vec<u32> = workers.iter().map(|worker| worker.free).collect();
    let roomy = roomy(workers, refused);
    // At another parallelism the keys of a slot were those of several, or some of one: it goes to the middle one's worker,
    // and nobody gets more than if nothing had been there before, or a larger job would stay where the smaller one was.
    let rescaled = before.len() as u64 != u64::from(slots);
    if rescaled {
        let mut rest = free.clone();
        let mut shares = spread_among(&mut rest, &roomy, slots);
        let more = slots.saturating_sub(u32::try_from(shares.len()).unwrap_or(u32::MAX));
        shares.extend(spread(&mut rest, more));
        free = (0..free.len()).map(|at| shares.iter().filter(|of| **of == at).count() as u32).collect();
    }
    let was = |slot| {
        let was = before.get(same_keys(slot, slots, before.len()))?;
        workers.iter().position(|worker| worker.id == was)
    };
    let has_refused = |at: usize| workers.get(at).is_some_and(|worker| refused.contains(worker.id));
    let mut placed: Vec<Option<usize>> = (0..slots).map(|_| None).collect();
    stick(&mut placed, &mut free, |slot| was(slot).filter(|at| !has_refused(*at)));
    let among = spread_among(&mut free, &roomy, missing(&placed));
    fill(&mut placed, among);
    // There is no better place for the others.
    stick(&mut placed, &mut free, was);
    let others = spread(&mut free, missing(&placed));
    fill(&mut placed, others);
    placed.into_iter().flatten().collect()
}

/// Which workers are better than those that refused a job for want of memory: they have more left than each of these, or they
/// would refuse it as well. None, if nobody refused it that is there.
fn roomy(workers: &[Offered<'_>], refused: &BTreeSet<String>) -> Vec<bool> {
    let there = workers.iter().filter(|worker| refused.contains(worker.id));
    let most = there.map(|worker| worker.left_bytes).max();
    let is_roomy =
        |worker: &Offered<'_>| !refused.contains(worker.id) && most.is_some_and(|most| worker.left_bytes > most);
    workers.iter().map(is_roomy).collect()
}

/// Whether a worker with a free slot has more memory left than those that refused the job.
pub fn has_room(workers: &[Offered<'_>], refused: &BTreeSet<String>) -> bool {
    workers.iter().zip(roomy(workers, refused)).any(|(worker, roomy)| roomy && worker.free > 0)
}

/// Puts the slots that have no place yet where they were, as far as these have room.
fn stick(placed: &mut [Option<usize>], free: &mut [u32], was: impl Fn(u32) -> Option<usize>) {
    for (slot, place) in (0..).zip(placed).filter(|(_, place)| place.is_none()) {
        let Some(at) = was(slot) else { continue };
        let Some(left) = free.get_mut(at).filter(|left| **left > 0) else { continue };
        *left -= 1;
        *place = Some(at);
    }
}

/// Gives these places to the slots that have none.
fn fill(placed: &mut [Option<usize>], places: Vec<usize>) {
    placed.iter_mut().filter(|place| place.is_none()).zip(places).for_each(|(place, at)| *place = Some(at));
}

fn missing(placed: &[Option<usize>]) -> u32 {
    u32::try_from(placed.iter().filter(|place| place.is_none()).count()).unwrap_or(u32::MAX)
}

/// How many slots a job may have that had so many before, of those that are free, where some are kept for jobs that are
/// started again. So what it had it may have again, if that is there, and more only of those that are not kept.
pub fn may_have(free: u32, kept: u32, had: u32) -> u32 {
    had.min(free).max(free.saturating_sub(kept))
}

/// Which of the slots before, of so many, had the middle of a slot's keys. Both are cut into ranges of key groups.
fn same_keys(slot: u32, slots: u32, before: usize) -> usize {
    let at = (2 * u64::from(slot) + 1) * before as u64 / (2 * u64::from(slots)).max(1);
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// As [`spread`], from these alone.
fn spread_among(free: &mut [u32], these: &[bool], slots: u32) -> Vec<usize> {
    let mut of: Vec<u32> = free.iter().zip(these).map(|(left, is)| if *is { *left } else { 0 }).collect();
    let taken = spread(&mut of, slots);
    free.iter_mut().zip(of).zip(these).filter(|(_, is)| **is).for_each(|((left, now), _)| *left = now);
    taken
}

/// Takes slots one by one from whoever has most left.
fn spread(free: &mut [u32], slots: u32) -> Vec<usize> {
    let mut taken = Vec::new();
    for _ in 0..slots {
        let most = free.iter_mut().enumerate().filter(|(_, left)| **left > 0).max_by_key(|(_, left)| **left);
        let Some((at, left)) = most else { break };
        *left -= 1;
        taken.push(at);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places slots on workers `a`, `b`, ... with so many free slots: their names, by slot.
    fn placed(free: &[u32], slots: u32, before: &str) -> String {
        placed_beside(free, slots, before, &[], "")
    }

    /// The same, where each has so much memory left, and these refused the job.
    fn placed_beside(free: &[u32], slots: u32, before: &str, left: &[u64], refused: &str) -> String {
        let names: Vec<String> = ('a'..).take(free.len()).map(String::from).collect();
        let left = left.iter().copied().chain(std::iter::repeat(0));
        let offered = names.iter().zip(free).zip(left);
        let workers: Vec<_> = offered.map(|((id, free), left_bytes)| Offered { id, free: *free, left_bytes }).collect();
        let [before, refused] = [before, refused].map(|names| names.chars().map(String::from).collect::<Vec<_>>());
        let refused = refused.into_iter().collect();
        place(&workers, slots, &before, &refused).into_iter().map(|at| names[at].as_str()).collect()
    }

    #[test]
    fn slots_of_a_new_job_are_spread() {
        assert_eq!(placed(&[2, 2, 2], 3, ""), "cba");
        assert_eq!(placed(&[1, 3], 3, ""), "bbb");
        assert_eq!(placed(&[1, 1], 3, "").len(), 2, "there are no more");
    }

    #[test]
    fn a_slot_goes_back_to_where_it_was_and_the_others_are_spread() {
        assert_eq!(placed(&[2, 2, 2], 3, "abc"), "abc");
        // `x` is gone.
        assert_eq!(placed(&[2, 2], 4, "axab"), "abab");
        assert_eq!(placed(&[3, 3], 3, "xxa"), "bba");
        // Somebody else has taken the room of one.
        assert_eq!(placed(&[1, 3], 3, "aab"), "abb");
        // Nothing is left of where it was.
        assert_eq!(placed(&[2, 2], 2, "xy"), placed(&[2, 2], 2, ""));
    }

    #[test]
    fn a_rescaled_job_is_spread_as_a_new_one_and_its_keys_stay_where_they_can() {
        // The first half of the keys was on `a`.
        assert_eq!(placed(&[2, 2], 4, "ab"), "aabb");
        assert_eq!(placed(&[2, 2], 2, "aabb"), "ab");
        // There are more workers than before: they get their share.
        assert_eq!(placed(&[1, 1, 1, 1], 4, "ab").chars().next(), Some('a'));
        let mut spread: Vec<char> = placed(&[4, 4, 4, 4], 4, "ab").chars().collect();
        spread.sort_unstable();
        assert_eq!(spread, ['a', 'b', 'c', 'd']);
        // Smaller, and not piled up.
        assert_eq!(placed(&[4, 4], 2, "aaab"), "ab");
    }

    #[test]
    fn a_worker_that_refused_a_job_is_passed_over_for_one_with_more_memory_left() {
        assert_eq!(placed_beside(&[2, 1], 1, "a", &[10, 20], "a"), "b");
        assert_eq!(placed_beside(&[2, 1], 1, "a", &[10, 20], ""), "a", "nobody refused it");
        assert_eq!(placed_beside(&[2, 1], 1, "a", &[10, 10], "a"), "a", "the other one would refuse it as well");
        assert_eq!(placed_beside(&[2, 0], 1, "a", &[10, 20], "a"), "a", "the other one has no slot");
        assert_eq!(placed_beside(&[2, 2, 1], 1, "b", &[10, 5, 20], "ab"), "c", "more than each of them");
        // Others stay where they are, and where there is room for one of two, one goes.
        assert_eq!(placed_beside(&[2, 2, 9], 4, "abab", &[10, 0, 20], "a"), "cbcb");
        assert_eq!(placed_beside(&[2, 2, 1], 4, "abab", &[10, 0, 20], "a"), "cbab");
        // It is larger now.
        assert_eq!(placed_beside(&[4, 1, 1], 2, "a", &[10, 20, 20], "a"), "cb");
        assert_eq!(placed_beside(&[4, 1], 3, "a", &[10, 20], "a").matches('b').count(), 1);
        // Who refused it is gone.
        assert_eq!(placed_beside(&[2, 2], 2, "xb", &[10, 20], "x"), placed(&[2, 2], 2, "xb"));
    }

    #[test]
    fn whoever_has_slots_has_all_that_were_asked_for_and_nobody_gives_more_than_it_has() {
        for slots in 0..9 {
            for before in ["", "a", "ab", "aabb", "ccccc", "abcabcab", "xyxyx", "aaaaaaaa"] {
                for free in [[3, 3, 3], [0, 4, 5], [9, 0, 0], [1, 2, 1]] {
                    for refused in ["", "a", "b", "ab", "abc", "x"] {
                        for left in [[0, 0, 0], [1, 2, 3], [3, 2, 1], [2, 1, 2]] {
                            check(slots, before, free, refused, left);
                        }
                    }
                }
            }
        }
    }

    fn check(slots: u32, before: &str, free: [u32; 3], refused: &str, left: [u64; 3]) {
        let case = format!("{slots} {before} {free:?} {refused} {left:?}");
        let placed_here = placed_beside(&free, slots, before, &left, refused);
        let there: u32 = free.iter().sum();
        assert_eq!(placed_here.len() as u32, slots.min(there), "{case}");
        let given = |name: char| placed_here.chars().filter(|of| *of == name).count() as u32;
        for (name, free) in ('a'..).zip(free) {
            assert!(given(name) <= free, "{case}: {placed_here}");
        }
        let left_of = |name: char| ('a'..).zip(left).find(|(of, _)| *of == name).map(|(_, left)| left);
        let most = refused.chars().filter_map(left_of).max();
        let roomy = |name: char| !refused.contains(name) && most.is_some_and(|most| left_of(name) > Some(most));
        let roomy: Vec<(char, u32)> = ('a'..).zip(free).filter(|(name, _)| roomy(*name)).collect();
        if roomy.is_empty() {
            assert_eq!(placed_here, placed(&free, slots, before), "{case}: as if nobody had refused it");
        } else if roomy.iter().any(|(name, free)| given(*name) < *free) {
            assert!(!placed_here.chars().any(|of| refused.contains(of)), "{case}: {placed_here}");
        }
        // Sticky, but for those that refused it.
        if before.len() as u32 == slots && slots <= there {
            for (slot, was) in before.chars().enumerate().filter(|(_, was)| !refused.contains(*was)) {
                let earlier = before.chars().take(slot).filter(|of| *of == was).count() as u32;
                let has_room = ('a'..).zip(free).any(|(name, free)| name == was && earlier < free);
                assert!(!has_room || placed_here.chars().nth(slot) == Some(was), "{case}: {placed_here}");
            }
        }
    }

    #[test]
    fn standby_slots_are_for_what_ran() {
        assert_eq!(may_have(3, 2, 0), 1, "a new job");
        assert_eq!(may_have(3, 0, 0), 3, "nothing is kept");
        assert_eq!(may_have(3, 2, 3), 3, "it is started again");
        assert_eq!(may_have(1, 2, 3), 1, "a part of it is there");
        // Its own 2, given back, are among the 6; of the other 4, 2 are kept.
        assert_eq!(may_have(6, 2, 2), 4, "it is to be larger");
        assert_eq!(may_have(3, 2, 2), 2, "it can't be larger");
        assert_eq!(may_have(1, 5, 0), 0);
    }
}
