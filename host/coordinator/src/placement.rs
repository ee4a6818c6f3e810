//! Which worker gets which slot of a job, and how many slots a job may have. Pure.
//!
//! Slots are spread: each comes from whoever has most left. A slot that ran before goes back to where it was, if that worker
//! has room: there its state may still be on the local disk, its connections stand, its component is compiled.

/// A worker, by what matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered<'a> {
    /// Which.
    pub id: &'a str,
    /// How many of its slots nothing runs in.
    pub free: u32,
}

/// For each slot, the index of the worker that it goes to; fewer, if there are not enough. `before`: where the job's slots
/// were, by slot.
pub fn place(workers: &[Offered<'_>], slots: u32, before: &[String]) -> Vec<usize> {
    let mut free: Vec<u32> = workers.iter().map(|worker| worker.free).collect();
    // At another parallelism the keys of a slot were those of several, or some of one: it goes to the middle one's worker,
    // and nobody gets more than if nothing had been there before, or a larger job would stay where the smaller one was.
    let rescaled = before.len() as u64 != u64::from(slots);
    if rescaled {
        let mut rest = free.clone();
        let shares = spread(&mut rest, slots);
        free = (0..free.len()).map(|at| shares.iter().filter(|of| **of == at).count() as u32).collect();
    }
    let sticky: Vec<Option<usize>> = (0..slots)
        .map(|slot| {
            let was = before.get(same_keys(slot, slots, before.len()))?;
            let at = workers.iter().position(|worker| worker.id == was)?;
            let left = free.get_mut(at).filter(|left| **left > 0)?;
            *left -= 1;
            Some(at)
        })
        .collect();
    let missing = sticky.iter().filter(|at| at.is_none()).count();
    let mut others = spread(&mut free, u32::try_from(missing).unwrap_or(u32::MAX)).into_iter();
    sticky.into_iter().filter_map(|at| at.or_else(|| others.next())).collect()
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
        let names: Vec<String> = ('a'..).take(free.len()).map(String::from).collect();
        let workers: Vec<_> = names.iter().zip(free).map(|(id, free)| Offered { id, free: *free }).collect();
        let before: Vec<String> = before.chars().map(String::from).collect();
        place(&workers, slots, &before).into_iter().map(|at| names[at].as_str()).collect()
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
    fn whoever_has_slots_has_all_that_were_asked_for_and_nobody_gives_more_than_it_has() {
        for slots in 0..9 {
            for before in ["", "a", "ab", "aabb", "ccccc", "abcabcab", "xyxyx", "aaaaaaaa"] {
                for free in [[3, 3, 3], [0, 4, 5], [9, 0, 0], [1, 2, 1]] {
                    let placed = placed(&free, slots, before);
                    let there: u32 = free.iter().sum();
                    assert_eq!(placed.len() as u32, slots.min(there), "{slots} {before} {free:?}");
                    for (name, free) in ('a'..).zip(free) {
                        let given = placed.chars().filter(|of| *of == name).count() as u32;
                        assert!(given <= free, "{slots} {before} {free}: {placed}");
                    }
                }
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
