//! Frozen state as changes of the database.
#![allow(clippy::indexing_slicing, reason = "spans and rows are made here, from what they index")]

use tidemill_core::keys::{hash_fixed, hash_row};
use tidemill_core::{Batch, Result};

use super::layout::{LEAD, PartId, order_of, push_value};
use super::pieces;
use crate::format::PartKind;
use crate::memory::frozen::{About, FrozenPart, FrozenState, KeyBytes, PartAbout, TableChunk, disagree};

/// Ranges that are dropped, and then keys that are set or removed.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) dropped: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// What entries' keys begin with; the same may be there twice.
    leads: Vec<[u8; LEAD]>,
}

/// Where an entry lies in the bytes: its key, and right behind it the value.
#[derive(Clone, Copy)]
struct Entry {
    /// The first bytes of the key after the lead.
    order: u128,
    /// Which of the leads; when sorted, the lead's rank.
    lead: u32,
    at: u64,
    key: u32,
    /// `u32::MAX`: it is removed.
    value: u32,
}

const REMOVED: u32 = u32::MAX;

/// So many bytes are written at once: few enough to be nothing beside what was frozen, and a file of a good size.
const WRITTEN_BYTES: usize = 64 << 20;

impl Changes {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// By key; what was set stays behind what was removed.
    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |e: &Entry| &bytes[e.at as usize..e.at as usize + e.key as usize];
        // There are few leads, so their order is found once, and most entries are told apart without a look at the bytes.
        let mut sorted: Vec<usize> = (0..self.leads.len()).collect();
        sorted.sort_by_key(|&i| self.leads[i]);
        let mut ranks = vec![0; sorted.len()];
        let mut rank = 0;
        for (i, &lead) in sorted.iter().enumerate() {
            if i > 0 && self.leads[sorted[i - 1]] != self.leads[lead] {
                rank += 1;
            }
            ranks[lead] = rank;
        }
        self.entries.iter_mut().for_each(|e| e.lead = ranks[e.lead as usize]);
        self.entries.sort_unstable_by(|a, b| {
            (a.lead, a.order).cmp(&(b.lead, b.order)).then_with(|| key(a).cmp(key(b))).then(a.at.cmp(&b.at))
        });
    }

    /// Each entry in order; of equal keys in a row, the last.
    pub(super) fn each(&self, mut act: impl FnMut(&[u8], Option<&[u8]>) -> Result<()>) -> Result<()> {
        let key = |e: &Entry| &self.bytes[e.at as usize..e.at as usize + e.key as usize];
        for (i, entry) in self.entries.iter().enumerate() {
            if self.entries.get(i + 1).is_some_and(|next| next.order == entry.order && key(next) == key(entry)) {
                continue;
            }
            let after = entry.at as usize + entry.key as usize;
            let value = (entry.value != REMOVED).then(|| &self.bytes[after..after + entry.value as usize]);
            act(key(entry), value)?;
        }
        Ok(())
    }

    /// Hands over what there is, once it is much.
    fn write_if_full(&mut self, write: &mut Write<'_>) -> Result<()> {
        if self.bytes.len() + self.entries.len() * size_of::<Entry>() < WRITTEN_BYTES {
            return Ok(());
        }
        let lead = self.leads.last().copied();
        write(std::mem::take(self))?;
        self.leads.extend(lead);
        Ok(())
    }

    /// The entries that follow have keys with this lead.
    fn begin(&mut self, lead: [u8; LEAD]) {
        self.leads.push(lead);
    }

    fn push(&mut self, key: impl FnOnce(&mut Vec<u8>), value: Option<&mut Encode<'_>>) {
        let at = self.bytes.len();
        key(&mut self.bytes);
        let length = self.bytes.len() - at;
        let order = order_of(&self.bytes[at + LEAD..]);
        let value = value.map_or(REMOVED, |value| {
            let before = self.bytes.len();
            value(&mut self.bytes);
            (self.bytes.len() - before) as u32
        });
        let lead = self.leads.len().saturating_sub(1) as u32;
        self.entries.push(Entry { order, lead, at: at as u64, key: length as u32, value });
    }
}

/// Appends an encoded value.
type Encode<'a> = dyn FnMut(&mut Vec<u8>) + 'a;

/// Takes changes to be written.
type Write<'a> = dyn FnMut(Changes) -> Result<()> + 'a;

/// What was frozen, as changes: in pieces of bounded size, to be written in this order.
pub(super) fn each_change(frozen: &FrozenState, write: &mut Write<'_>) -> Result<()> {
    let mut changes = Changes::default();
    for (about, part) in &frozen.parts {
        let id = PartId::new(about.kind, &about.name);
        for &namespace in &part.dropped {
            let timers = matches!(about.kind, PartKind::EventTimers | PartKind::ProcessingTimers);
            let (from, to) = if timers { id.all() } else { id.range(namespace) };
            changes.dropped.push((from.to_vec(), to));
        }
        match about.kind {
            PartKind::Log => push_pieces(&mut changes, &frozen.about, id, about, part, write)?,
            _ => {
                push_entries(&mut changes, &frozen.about, id, &part.removed, false, write)?;
                push_entries(&mut changes, &frozen.about, id, &part.put, true, write)?;
            }
        }
    }
    write(changes)
}

fn push_entries(
    changes: &mut Changes,
    about: &About,
    id: PartId,
    chunk: &TableChunk,
    put: bool,
    write: &mut Write<'_>,
) -> Result<()> {
    let rows = chunk.keys.len();
    let mut row = 0;
    for &(lead, n) in &chunk.runs {
        let lead = id.lead(lead);
        changes.begin(lead);
        for row in row..row + n {
            let key = |to: &mut Vec<u8>| {
                to.extend_from_slice(&lead);
                let group = |hash| about.max_parallelism.key_group(hash).0.to_be_bytes();
                match &chunk.keys {
                    KeyBytes::Fixed(keys) => {
                        to.extend_from_slice(&group(hash_fixed(keys[row])));
                        to.extend_from_slice(&keys[row].to_be_bytes());
                    }
                    KeyBytes::Rows(keys) => {
                        to.extend_from_slice(&group(hash_row(keys.get(row))));
                        to.extend_from_slice(keys.get(row));
                    }
                }
            };
            let mut value = |to: &mut Vec<u8>| push_value(&chunk.columns, row, to);
            changes.push(key, if put { Some(&mut value) } else { None });
            changes.write_if_full(write)?;
        }
        row += n;
    }
    if row == rows { Ok(()) } else { Err(disagree("keys and namespaces")) }
}

fn push_pieces(
    changes: &mut Changes,
    about: &About,
    id: PartId,
    part_about: &PartAbout,
    part: &FrozenPart,
    write: &mut Write<'_>,
) -> Result<()> {
    let mut row = 0;
    if part.rows.len() != part.sequences.len() || part.rows.len() != part.put.runs.len() {
        return Err(disagree("pieces of a log and their numbers"));
    }
    for ((&(namespace, n), batch), sequence) in part.put.runs.iter().zip(&part.rows).zip(&part.sequences) {
        let rows: Vec<u32> = (row..row + n as u32).collect();
        let keys = part.put.keys.decode(&about.codec, &rows)?;
        let encoded = pieces::encode(about, part_about, batch_of(batch, n)?, keys)?;
        let lead = id.lead(namespace);
        changes.begin(lead);
        let key = |to: &mut Vec<u8>| {
            to.extend_from_slice(&lead);
            to.extend_from_slice(&sequence.to_be_bytes());
        };
        changes.push(key, Some(&mut |to| to.extend_from_slice(&encoded)));
        changes.write_if_full(write)?;
        row += n as u32;
    }
    Ok(())
}

fn batch_of(batch: &Batch, rows: usize) -> Result<&Batch> {
    if batch.rows() == rows { Ok(batch) } else { Err(disagree("rows of a log and their keys")) }
}
