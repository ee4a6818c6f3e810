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

    /// Whether all that are live count as marked.
    pub(crate) fn are_all(&self) -> bool {
        self.all
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

    /// Unmarks all, and sets their bits.
    pub(crate) fn move_to(&mut self, to: &mut Bits) {
        self.bits.move_to(to);
        (self.all, self.since) = (false, 0);
    }

    /// Those of these slots that are marked, ascending; `None`: all that are live.
    pub(crate) fn among(&self, slots: Range<usize>) -> Option<Vec<Slot>> {
        (!self.all).then(|| self.bits.among(slots))
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bits.memory_bytes()
    }
}

/// Words that are looked at together.
const LINE: usize = 8;

/// The slots of a word.
pub(crate) const WORD_SLOTS: usize = u64::BITS as usize;

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

    /// Unsets all, and sets them in another.
    pub(crate) fn move_to(&mut self, to: &mut Self) {
        to.0.resize(self.0.len().max(to.0.len()), 0);
        for (from, to) in self.0.iter_mut().zip(&mut to.0) {
            *to |= std::mem::take(from);
        }
    }

    /// So many are set.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those of these slots that are set, ascending. Few among many cost little more than a look at the memory. The
    /// range begins and ends with the first slot of a word, or ends with the last of all.
    pub(crate) fn among(&self, slots: Range<usize>) -> Vec<Slot> {
        let end = slots.end.div_ceil(WORD_SLOTS).min(self.0.len());
        let first = (slots.start / WORD_SLOTS).min(end);
        let words = self.0.get(first..end).unwrap_or_default();
        let mut found = Vec::with_capacity(words.iter().map(|word| word.count_ones() as usize).sum());
        for (i, line) in words.chunks(LINE).enumerate() {
            if line.iter().fold(0, |all, word| all | word) == 0 {
                continue;
            }
            for (j, &word) in line.iter().enumerate() {
                let (first, mut word) = (((first + i * LINE + j) * 64) as Slot, word);
                while word != 0 {
                    found.push(first + word.trailing_zeros());
                    word &= word - 1;
                }
            }
        }
        found
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Bits {
        fn slots(&self) -> Vec<Slot> {
            self.among(0..usize::MAX)
        }
    }

    impl Marks {
        fn slots(&self) -> Option<Vec<Slot>> {
            self.among(0..usize::MAX)
        }
    }

    #[test]
    fn each_range_has_its_own() {
        let mut bits = Bits::default();
        bits.grow(2000);
        let set: Vec<Slot> = (0..2000).filter(|slot| slot % 700 > 600 || slot % 64 == 63).collect();
        set.iter().for_each(|&slot| bits.set(slot));
        for middle in (0..2100).step_by(WORD_SLOTS) {
            assert_eq!([bits.among(0..middle), bits.among(middle..2000)].concat(), set, "{middle}");
        }
    }

    #[test]
    fn what_is_set_is_found_and_moves() {
        let (mut bits, mut others) = (Bits::default(), Bits::default());
        bits.grow(2000);
        let set = [0, 1, 63, 64, 700, 1999];
        set.iter().for_each(|&slot| bits.set(slot));
        assert_eq!(bits.slots(), set);
        assert!(bits.take(64) && !bits.take(64) && !bits.take(65));
        bits.move_to(&mut others);
        assert_eq!((bits.slots(), others.slots()), (vec![], vec![0, 1, 63, 700, 1999]));
    }

    #[test]
    fn once_nearly_all_are_marked_all_are_until_the_marks_are_taken() {
        let (mut marks, mut known) = (Marks::default(), Bits::default());
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
        marks.move_to(&mut known);
        assert!(marks.slots() == Some(vec![]) && !marks.has(0));
        marks.set(&most[..500], 1000);
        marks.set(&most[..499], 1000);
        assert_eq!(marks.slots().map(|slots| slots.len()), Some(500));
        // Marks from before they were taken do not bring the next count nearer.
        marks.move_to(&mut known);
        let nearly_all: Vec<Slot> = (0..950).collect();
        marks.set(&nearly_all, 1000);
        assert_eq!(marks.slots(), Some(nearly_all));
    }
}
