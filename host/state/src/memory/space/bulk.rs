//! Adding many entries at once, as a restore does.
//!
//! Added one after the other, each misses the cache where its place in the index is, and most of a restore is waiting
//! for memory. So the index is made at the end, one range of places after the other, each small enough for the cache.

use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use tidemill_core::Result;
use tidemill_core::keys::{KeyData, Keys, hash_fixed, hash_row};
use tidemill_core::state::Slot;

use super::{Entry, SlotKeys, Space, other_codec, spread};

/// About the size of a range of the index.
const RANGE_BYTES: usize = 1 << 20;
/// So many slots are put in order at a time, which takes four bytes each.
const AT_ONCE: usize = 1 << 24;

impl Space {
    /// Adds entries, or sets them anew, without a look for their keys. Before anything else is asked or changed, what was
    /// appended has to be indexed. Not where there is a disk.
    pub(crate) fn append(&mut self, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        self.check_room(keys.len())?;
        let from = self.slots;
        match (&mut self.keys, &keys.data) {
            (SlotKeys::Fixed(stored), KeyData::Fixed(values)) => {
                stored.extend_from_slice(values);
            }
            (SlotKeys::Rows(stored), KeyData::Rows(encoded)) => {
                (from as Slot..).zip(encoded).for_each(|(slot, row)| stored.set(slot, row.as_ref()));
            }
            _ => return Err(other_codec()),
        }
        self.slots += keys.len();
        self.live.set_all(from..self.slots);
        slots.clear();
        slots.extend(from as Slot..self.slots as Slot);
        self.grow_values();
        self.change(slots);
        self.unindexed.get_or_insert(from);
        Ok(())
    }

    /// Indexes what was appended. Of a key that is there twice, the latest entry stays.
    pub(crate) fn index_appended(&mut self) {
        let Some(appended) = self.unindexed.take() else { return };
        let slots = appended as Slot..self.slots as Slot;
        let replaced = match &self.keys {
            SlotKeys::Fixed(stored) => {
                index_slots(&mut self.index, slots, |slot| stored[slot as usize], hash_fixed, |_, _| true)
            }
            SlotKeys::Rows(stored) => {
                let same = |one, other| stored.get(one) == stored.get(other);
                index_slots(&mut self.index, slots, |slot| hash_row(stored.get(slot)), |hash| hash, same)
            }
        };
        for slot in replaced {
            self.changed.unset(slot);
            self.known.take(slot);
            self.forget_one(slot, false);
        }
    }
}

/// Indexes slots whose entries have these words, of which those of one key are equal and give its hash. `same`: whether two
/// slots whose words are equal have one key. Answers the slots whose places others took.
fn index_slots(
    index: &mut HashTable<Entry>,
    slots: Range<Slot>,
    word: impl Fn(Slot) -> u64,
    hash: impl Fn(u64) -> u64,
    same: impl Fn(Slot, Slot) -> bool,
) -> Vec<Slot> {
    let hash = |word| spread(hash(word));
    let mut replaced = Vec::new();
    index.reserve(slots.len(), |e| hash(e.word));
    for from in slots.clone().step_by(AT_ONCE) {
        let some = from..slots.end.min(from.saturating_add(AT_ONCE as Slot));
        for slot in in_order(index, some, |slot| hash(word(slot))) {
            let entry = Entry { word: word(slot), slot };
            let is_there = |e: &Entry| e.word == entry.word && same(e.slot, slot);
            replaced.extend(put(index.entry(hash(entry.word), is_there, |e| hash(e.word)), entry));
        }
    }
    replaced
}

/// Answers the slot of the entry that was in this place.
fn put(place: Place<'_, Entry>, entry: Entry) -> Option<Slot> {
    match place {
        Place::Vacant(vacant) => {
            vacant.insert(entry);
            None
        }
        Place::Occupied(mut occupied) => Some(std::mem::replace(occupied.get_mut(), entry).slot),
    }
}

/// These slots, by the ranges of the index where their keys have their places. `hash`: as the index knows it.
fn in_order(index: &HashTable<Entry>, slots: Range<Slot>, hash: impl Fn(Slot) -> u64) -> Vec<Slot> {
    // The table keeps an eighth of its places empty, and puts a hash at the place that its lower bits say.
    let places = (index.capacity() + index.capacity() / 7).next_power_of_two();
    let ranges = (index.allocation_size() / RANGE_BYTES).next_power_of_two().min(places);
    if ranges == 1 {
        return slots.collect();
    }
    let range_of = |slot| (hash(slot) as usize & (places - 1)) / (places / ranges);
    let mut ends = vec![0usize; ranges];
    slots.clone().for_each(|slot| ends[range_of(slot)] += 1);
    let mut end = 0;
    for count in &mut ends {
        (*count, end) = (end, end + *count);
    }
    let mut ordered = vec![0; slots.len()];
    for slot in slots {
        let end = &mut ends[range_of(slot)];
        ordered[*end] = slot;
        *end += 1;
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::DataType;
    use tidemill_core::keys::KeyCodec;
    use tidemill_core::state::NO_SLOT;

    use super::*;

    fn numbers(keys: impl IntoIterator<Item = i64>) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(keys))
    }

    fn words(keys: impl IntoIterator<Item = i64>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(keys.into_iter().map(|key| format!("key {key}"))))
    }

    fn each_kind(test: impl Fn(&KeyCodec, fn(Vec<i64>) -> ArrayRef)) {
        test(&KeyCodec::new(&[DataType::Int64], false).unwrap(), |keys| numbers(keys));
        test(&KeyCodec::new(&[DataType::Utf8], false).unwrap(), |keys| words(keys));
    }

    fn found(space: &Space, keys: &Keys) -> Vec<Slot> {
        let mut slots = Vec::new();
        space.find(keys, &mut slots).unwrap();
        slots
    }

    #[test]
    fn what_was_appended_is_found_also_over_many_ranges_of_the_index() {
        const KEYS: i64 = 300_000;
        each_kind(|codec, array| {
            let mut space = Space::new(codec.is_fixed(), &[]);
            let mut slots = Vec::new();
            for from in (0..KEYS).step_by(70_000) {
                let batch: Vec<i64> = (from..KEYS.min(from + 70_000)).collect();
                let keys = codec.encode(batch.len(), &[array(batch)]).unwrap();
                space.append(&keys, &mut slots).unwrap();
                assert_eq!(slots.first().copied(), Some(from as Slot));
            }
            space.index_appended();
            assert_eq!(space.len(), KEYS as usize);
            let all = codec.encode(KEYS as usize + 1, &[array((0..=KEYS).collect())]).unwrap();
            let expected: Vec<Slot> = (0..KEYS as Slot).chain([NO_SLOT]).collect();
            assert_eq!(found(&space, &all), expected);
        });
    }

    #[test]
    fn of_a_key_that_is_there_twice_the_later_entry_stays() {
        each_kind(|codec, array| {
            let mut space = Space::new(codec.is_fixed(), &[]);
            let mut slots = Vec::new();
            for (batch, last) in [(vec![1, 2, 1], true), (vec![3], false), (vec![2], true)] {
                let keys = codec.encode(batch.len(), &[array(batch)]).unwrap();
                space.append(&keys, &mut slots).unwrap();
                if last {
                    space.index_appended();
                }
            }
            assert_eq!(space.len(), 3);
            let keys = codec.encode(4, &[array(vec![1, 2, 3, 4])]).unwrap();
            assert_eq!(found(&space, &keys), [2, 4, 3, NO_SLOT]);
            space.scan(None, 10, &mut slots);
            assert_eq!(slots, [2, 3, 4]);
            // What it left is used again.
            space.resolve(&keys, None, &mut slots).unwrap();
            assert!(slots.iter().all(|slot| *slot < 5), "{slots:?}");
        });
    }

    #[test]
    fn what_is_cleared_before_it_is_indexed_is_gone_and_forgotten() {
        each_kind(|codec, array| {
            let mut space = Space::new(codec.is_fixed(), &[]);
            let keys = codec.encode(2, &[array(vec![1, 2])]).unwrap();
            let append = |space: &mut Space| space.append(&keys, &mut Vec::new()).unwrap();
            append(&mut space);
            space.index_appended();
            append(&mut space);
            space.reset();
            assert_eq!((space.len(), found(&space, &keys)), (0, vec![NO_SLOT; 2]));
            append(&mut space);
            space.index_appended();
            assert_eq!((space.len(), found(&space, &keys)), (2, vec![0, 1]));
        });
    }
}
