//! A bit per slot. A byte would be simpler; but of a large state, the bits stay in the cache, and a byte per resolved
//! row would be one more miss each.

use std::ops::Range;

use tidemill_core::state::Slot;

/// Which slots were marked since the marks were taken last. Once nearly all are, all count as marked, and marking costs
/// nothing: what a job touches all of between two snapshots is not worth a bit each.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Mean nothing once all are marked.
    bits: Bits,
    all: bool,
    /// How often slots were marked since the marked ones were counted last.
    since: usize,
}

/// With fewer unmarked slots than one in so many, all count as marked.
const UNMARKED: usize = 16;

impl Marks {
    pub(crate) fn grow(&mut self, slots: usize) {
        self.bits.grow(slots);
    }

    /// Marks slots, of which so many are live.
    #[inline]
    pub(crate) fn set(&mut self, slots: &[Slot], live: usize) {
        if self.all {
            return;
        }
        slots.iter().for_each(|&slot| self.bits.set(slot));
        // Counting costs a sixty-fourth of the marks that were made before it.
        self.since += slots.len();
        if self.since >= live {
            self.since = 0;
            self.all = live - live / UNMARKED <= self.bits.count();
        }
    }

    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.all || self.bits.has(slot)
    }

    /// A slot becomes vacant.
    pub(crate) fn unset(&mut self, slot: Slot) {
        self.bits.take(slot);
    }

    pub(crate) fn clear(&mut self) {
        self.bits.clear();
        (self.all, self.since) = (false, 0);
    }

    /// Unmarks all, and answers their bits; `None`: of all that are live. `empty`, of which no bit is set, is what the
    /// marks are kept in from now on.
    pub(crate) fn take(&mut self, empty: &mut Bits) -> Option<Bits> {
        self.since = 0;
        let slots = self.bits.slots();
        if std::mem::take(&mut self.all) {
            self.bits.clear();
            self.bits.grow(slots);
            return None;
        }
        empty.grow(slots);
        Some(std::mem::replace(&mut self.bits, std::mem::take(empty)))
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bits.memory_bytes()
    }
}

/// The slots of a word.
const WORD_SLOTS: usize = u64::BITS as usize;

/// A word of which so many bits are set, the lowest.
fn below(slots: usize) -> u64 {
    1_u64.checked_shl(slots as u32).map_or(u64::MAX, |bit| bit - 1)
}

/// The slots of a word's set bits.
struct Ones {
    first: Slot,
    word: u64,
}

impl Iterator for Ones {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let next = (self.word != 0).then(|| self.first + self.word.trailing_zeros());
        self.word &= self.word.wrapping_sub(1);
        next
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// Makes room for so many slots.
    pub(crate) fn grow(&mut self, slots: usize) {
        self.0.resize(slots.div_ceil(64).max(self.0.len()), 0);
    }

    /// Most are set already, so the store is behind a branch: entries that are resolved in a row do not wait for each
    /// other's store.
    #[inline]
    pub(crate) fn set(&mut self, slot: Slot) {
        if let Some(word) = self.0.get_mut(slot as usize / 64) {
            let bit = 1 << (slot % 64);
            if *word & bit == 0 {
                *word |= bit;
            }
        }
    }

    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    /// Unsets a bit; answers whether it was set.
    pub(crate) fn take(&mut self, slot: Slot) -> bool {
        let bit = 1 << (slot % 64);
        let Some(word) = self.0.get_mut(slot as usize / 64) else { return false };
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Unsets all, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Sets a range.
    pub(crate) fn set_all(&mut self, slots: Range<usize>) {
        self.grow(slots.end);
        for (word, bits) in self.0.iter_mut().enumerate().skip(slots.start / WORD_SLOTS) {
            let first = word * WORD_SLOTS;
            let from = slots.start.saturating_sub(first).min(WORD_SLOTS);
            let to = slots.end.saturating_sub(first).min(WORD_SLOTS);
            // The bits below `to` without those below `from`.
            *bits |= below(to) & !below(from);
        }
    }

    /// Becomes equal to another, in its own memory.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.0.clear();
        self.0.extend_from_slice(&other.0);
    }

    /// Sets what is set in another, too.
    pub(crate) fn add(&mut self, other: &Self) {
        self.grow(other.slots());
        self.0.iter_mut().zip(&other.0).for_each(|(to, from)| *to |= from);
    }

    /// So many are set.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those that are set from a slot on, ascending. Few among many cost little more than a look at the memory.
    pub(crate) fn from(&self, slot: usize) -> impl Iterator<Item = Slot> + '_ {
        let words = self.0.iter().copied().enumerate().skip(slot / WORD_SLOTS);
        let of_word = move |(number, word): (usize, u64)| {
            let first = number * WORD_SLOTS;
            Ones { first: first as Slot, word: word & !below(slot.saturating_sub(first).min(WORD_SLOTS)) }
        };
        words.filter(|(_, word)| *word != 0).flat_map(of_word)
    }

    /// Room for so many slots.
    fn slots(&self) -> usize {
        self.0.len() * WORD_SLOTS
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Bits {
        fn set_slots(&self) -> Vec<Slot> {
            self.from(0).collect()
        }
    }

    impl Marks {
        fn slots(&self) -> Option<Vec<Slot>> {
            (!self.all).then(|| self.bits.set_slots())
        }

        fn unmark(&mut self) {
            self.take(&mut Bits::default());
        }
    }

    #[test]
    fn from_each_slot_on_there_are_the_later_ones() {
        let mut bits = Bits::default();
        bits.grow(2000);
        let set: Vec<Slot> = (0..2000).filter(|slot| slot % 700 > 600 || slot % 64 == 63).collect();
        set.iter().for_each(|&slot| bits.set(slot));
        for from in 0..2100 {
            let later: Vec<Slot> = set.iter().copied().filter(|slot| *slot as usize >= from).collect();
            assert_eq!(bits.from(from).collect::<Vec<_>>(), later, "{from}");
        }
    }

    #[test]
    fn a_range_is_set_and_nothing_beside_it() {
        for (from, to) in [(0, 0), (0, 64), (3, 5), (60, 70), (64, 128), (63, 200), (130, 130), (0, 1)] {
            let mut bits = Bits::default();
            bits.grow(10);
            bits.set_all(from..to);
            assert_eq!(bits.set_slots(), (from as Slot..to as Slot).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_set_is_found_and_copied() {
        let (mut bits, mut others) = (Bits::default(), Bits::default());
        bits.grow(2000);
        let set = [0, 1, 63, 64, 700, 1999];
        set.iter().for_each(|&slot| bits.set(slot));
        assert_eq!((bits.set_slots(), bits.count()), (set.to_vec(), 6));
        assert!(bits.take(64) && !bits.take(64) && !bits.take(65));
        others.set_all(2..3);
        others.add(&bits);
        assert_eq!(others.set_slots(), [0, 1, 2, 63, 700, 1999]);
        others.copy_from(&bits);
        assert_eq!(others.set_slots(), [0, 1, 63, 700, 1999]);
    }

    #[test]
    fn once_nearly_all_are_marked_all_are_until_the_marks_are_taken() {
        let mut marks = Marks::default();
        marks.grow(1000);
        let most: Vec<Slot> = (0..930).collect();
        marks.set(&most, 1000);
        marks.set(&most, 1000);
        assert_eq!(marks.slots(), Some(most.clone()), "seventy are not marked, more than one in sixteen");
        let more: Vec<Slot> = (930..950).collect();
        marks.set(&more, 1000);
        marks.set(&most[..30], 1000);
        assert_eq!(marks.slots().map(|slots| slots.len()), Some(950), "counted only after a thousand marks");
        marks.set(&most[..950 - 20], 1000);
        marks.set(&most[..20], 1000);
        assert!(marks.slots().is_none() && marks.has(999));
        // Vacant, and another entry's: marked, as all are.
        marks.unset(3);
        assert!(marks.has(3));
        marks.unmark();
        assert!(marks.slots() == Some(vec![]) && !marks.has(0));
        marks.set(&most[..500], 1000);
        marks.set(&most[..499], 1000);
        assert_eq!(marks.slots().map(|slots| slots.len()), Some(500));
        // Marks from before they were taken do not bring the next count nearer.
        marks.unmark();
        let nearly_all: Vec<Slot> = (0..950).collect();
        marks.set(&nearly_all, 1000);
        assert_eq!(marks.slots(), Some(nearly_all));
    }
}
