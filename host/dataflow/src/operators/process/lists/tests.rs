//! Operator lists: what is done to them, what is refused, and who has which items at another parallelism.

use arrow::array::{Array, Int32Array, StringViewArray};
use tidemill_core::ids::{MaxParallelism, NodeId, SubtaskIndex};
use tidemill_core::plan::DataType;
use tidemill_core::snapshot::FileRef;
use tidemill_state::testing::MemoryFiles;

use super::*;

const HELD: usize = 0;

fn declared(redistribution: Redistribution, item: DataType) -> Vec<State> {
    vec![State { kind: StateKind::OperatorList { redistribution }, ..State::value("held", item) }]
}

fn held() -> Vec<State> {
    declared(Redistribution::Split, DataType::Int64)
}

fn subtask(index: u32, parallelism: u32) -> SubtaskId {
    let index = SubtaskIndex(index);
    SubtaskId { job: "job".into(), node: NodeId(1), operator: "buffer".into(), index, parallelism }
}

fn groups(groups: u16) -> MaxParallelism {
    MaxParallelism::new(groups).unwrap()
}

fn open(states: &[State], restored: &[RestoredList], index: u32, parallelism: u32) -> Result<ListStates> {
    let codec = KeyCodec::new(&[ArrowType::Int64], false).unwrap();
    let spec = StateSpec { operator: "buffer".into(), max_parallelism: groups(128), ..StateSpec::empty(codec) };
    ListStates::declare(states, restored, &subtask(index, parallelism), &spec, &MemoryBackend::new())
}

fn fresh(states: &[State]) -> ListStates {
    open(states, &[], 0, 1).unwrap()
}

fn numbers(numbers: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(numbers))
}

fn change(change: CollectionChange) -> CollectionUpdate {
    CollectionUpdate { state: HELD, keys: vec![0].into(), change }
}

fn append(lists: &ListStates, items: ArrayRef) {
    lists.change(&change(CollectionChange::Append(items))).unwrap();
    lists.commit().unwrap();
}

fn all(lists: &ListStates) -> Vec<i64> {
    let read = lists.read(HELD, &[0], usize::MAX).unwrap().unwrap();
    read.as_list::<i32>().value(0).as_primitive::<Int64Type>().values().to_vec()
}

/// The lists of all subtasks, and the files of all checkpoints.
struct Subtasks(Vec<ListStates>, Arc<MemoryFiles>);

impl Subtasks {
    fn new(lists: impl IntoIterator<Item = ListStates>) -> Self {
        Self(lists.into_iter().collect(), Arc::default())
    }

    /// Written to files and read again at another parallelism, or the same.
    fn restored(&self, states: &[State], kind: SnapshotKind, parallelism: u32) -> Result<Self> {
        let pieces = self.0.iter().map(|lists| piece(lists, &self.1, kind)).collect::<Vec<_>>();
        let own = self.0.len() as u32 == parallelism;
        let of = |index: u32| {
            let pieces = match own {
                true => vec![pieces[index as usize].clone()],
                false => pieces.clone(),
            };
            open(states, &[RestoredList { name: "held".into(), own, pieces }], index, parallelism)
        };
        let lists = (0..parallelism).map(of).collect::<Result<_>>()?;
        Ok(Self(lists, Arc::clone(&self.1)))
    }

    fn all(&self) -> Vec<Vec<i64>> {
        self.0.iter().map(all).collect()
    }
}

fn piece(lists: &ListStates, files: &Arc<MemoryFiles>, kind: SnapshotKind) -> RestoredPiece {
    let frozen = lists.snapshot(kind).unwrap().remove(0);
    assert_eq!(frozen.name, "held");
    let from = RestoredState {
        handles: vec![frozen.state.write(&**files).unwrap()],
        files: Arc::clone(files) as _,
        max_parallelism: groups(128),
        allow_non_restored: false,
    };
    RestoredPiece { items: frozen.items.unwrap(), from }
}

#[test]
fn items_are_appended_read_in_order_and_cleared() {
    let lists = fresh(&held());
    assert!(lists.has(HELD) && !lists.has(1) && !lists.hold_any());
    assert!(all(&lists).is_empty());
    append(&lists, numbers([3, 1, 3]));
    append(&lists, numbers([2]));
    assert_eq!((all(&lists), lists.entries(), lists.hold_any()), (vec![3, 1, 3, 2], 4, true));
    let twice = lists.read(HELD, &[0, 0], usize::MAX).unwrap().unwrap();
    assert_eq!((twice.len(), twice.as_list::<i32>().values().len()), (2, 8));
    assert!(lists.read(HELD, &[0], 0).unwrap().is_none(), "more than may be read");
    assert!(lists.read(1, &[0], 0).is_err(), "no list");
    // Cleared and appended to in one transaction.
    lists.change(&change(CollectionChange::Clear)).unwrap();
    append(&lists, numbers([9]));
    assert_eq!(all(&lists), [9]);
    // More than are read at once.
    append(&lists, numbers(0..10_000));
    assert_eq!(all(&lists), [9].into_iter().chain(0..10_000).collect::<Vec<_>>());
    lists.clear().unwrap();
    assert!(!lists.hold_any());
}

#[test]
fn what_would_grow_without_end_is_refused_and_what_replaces_it_is_not() {
    let lists = fresh(&declared(Redistribution::Split, DataType::Utf8));
    let text = |bytes: usize| -> ArrayRef { Arc::new(StringViewArray::from(vec!["x".repeat(bytes)])) };
    let large = || change(CollectionChange::Append(text(MAX_LIST_BYTES / 2)));
    let refused = |updates: &[CollectionUpdate]| lists.refused(updates).unwrap().unwrap_or_default();
    assert_eq!(refused(&[large()]), "");
    assert!(refused(&[large(), large()]).contains("67108864 are possible"));
    lists.change(&large()).unwrap();
    lists.commit().unwrap();
    assert!(refused(&[large()]).contains("67108864 are possible"), "with what is there");
    assert_eq!(refused(&[change(CollectionChange::Clear), large()]), "");
    assert!(refused(&[change(CollectionChange::Remove(text(1)))]).contains("'held' is no map"));
    // Those of others are no business of this.
    let other = CollectionUpdate { state: 7, keys: vec![3].into(), change: CollectionChange::Append(text(1)) };
    assert_eq!(refused(&[other]), "");
}

#[test]
fn a_subtask_gets_its_own_list_back_and_goes_on_with_it() {
    for (kind, redistribution) in [
        (SnapshotKind::Incremental, Redistribution::Split),
        (SnapshotKind::Portable, Redistribution::Split),
        (SnapshotKind::Incremental, Redistribution::Union),
    ] {
        let states = declared(redistribution, DataType::Int64);
        let mut subtasks = Subtasks::new((0..3).map(|index| open(&states, &[], index, 3).unwrap()));
        for (index, lists) in subtasks.0.iter().enumerate() {
            append(lists, numbers((0..1_000).map(|n| n * 3 + index as i64)));
        }
        append(&subtasks.0[1], numbers([-1]));
        let before = subtasks.all();
        subtasks = subtasks.restored(&states, kind, 3).unwrap();
        assert_eq!(subtasks.all(), before, "{kind:?} {redistribution:?}");
        append(&subtasks.0[1], numbers([-2]));
        assert_eq!(all(&subtasks.0[1])[999..], [2_998, -1, -2]);
        // And again: what came after the restore lies behind what was there.
        subtasks = subtasks.restored(&states, kind, 3).unwrap();
        assert_eq!(all(&subtasks.0[1])[999..], [2_998, -1, -2]);
    }
}

#[test]
fn a_checkpoint_has_what_changed_since_the_one_before() {
    let lists = fresh(&held());
    let files = Arc::new(MemoryFiles::new());
    append(&lists, numbers(0..50_000));
    let first = piece(&lists, &files, SnapshotKind::Incremental);
    append(&lists, numbers([7]));
    let second = piece(&lists, &files, SnapshotKind::Incremental);
    let bytes = |files: &[FileRef]| files.iter().map(|file| file.bytes).sum::<u64>();
    let (before, now) = (&first.from.handles[0].files, &second.from.handles[0].files);
    assert!(now.starts_with(before) && now.len() == before.len() + 1, "{now:?}");
    assert!(bytes(&now[before.len()..]) < bytes(before) / 10);
    // What was cleared is gone, also if the same places are taken again.
    lists.change(&change(CollectionChange::Clear)).unwrap();
    append(&lists, numbers([5, 6]));
    let third = piece(&lists, &files, SnapshotKind::Incremental);
    let again = open(&held(), &[RestoredList { name: "held".into(), own: true, pieces: vec![third] }], 0, 1).unwrap();
    assert_eq!(all(&again), [5, 6]);
}

#[test]
fn a_split_loses_nothing_and_doubles_nothing_and_keeps_the_order() {
    let states = held();
    for kind in [SnapshotKind::Incremental, SnapshotKind::Portable] {
        let one = fresh(&states);
        append(&one, numbers(0..1_000));
        let mut subtasks = Subtasks::new([one]);
        for parallelism in [3, 2, 5, 4, 1] {
            subtasks = subtasks.restored(&states, kind, parallelism).unwrap();
            let lists = subtasks.all();
            assert_eq!(lists.concat(), (0..1_000).collect::<Vec<_>>(), "at {parallelism}");
            let lengths: Vec<usize> = lists.iter().map(Vec::len).collect();
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
        }
    }
}

#[test]
fn a_union_gives_all_to_everyone() {
    let states = declared(Redistribution::Union, DataType::Int64);
    let one = fresh(&states);
    append(&one, numbers([1, 2]));
    let three = Subtasks::new([one]).restored(&states, SnapshotKind::Portable, 3).unwrap();
    assert_eq!(three.all(), vec![vec![1, 2]; 3]);
    append(&three.0[2], numbers([3]));
    let two = three.restored(&states, SnapshotKind::Portable, 2).unwrap();
    assert_eq!(two.all(), vec![vec![1, 2, 1, 2, 1, 2, 3]; 2]);
    // What is declared now decides, not what was.
    let three = two.restored(&held(), SnapshotKind::Portable, 3).unwrap();
    assert_eq!(three.all(), [vec![1, 2, 1, 2], vec![1, 2, 3, 1, 2], vec![1, 2, 1, 2, 3]]);
}

#[test]
fn parts_of_any_lengths_are_even_and_complete() {
    let lengths: [&[u64]; 6] = [&[], &[0], &[10], &[3, 0, 4, 1], &[1, 1, 1], &[0, 0, 100, 7]];
    for lengths in lengths {
        let all: Vec<(usize, u64)> =
            lengths.iter().enumerate().flat_map(|(at, length)| (0..*length).map(move |i| (at, i))).collect();
        for parallelism in 1..6 {
            let of = |redistribution, subtask| -> Vec<(usize, u64)> {
                let parts = parts(redistribution, lengths, subtask, parallelism);
                parts.into_iter().flat_map(|(at, range)| range.map(move |i| (at, i))).collect()
            };
            let split: Vec<_> = (0..parallelism).map(|subtask| of(Redistribution::Split, subtask)).collect();
            assert_eq!(split.concat(), all, "{lengths:?} at {parallelism}");
            let even = |part: &Vec<_>| part.len().abs_diff(all.len() / parallelism as usize) <= 1;
            assert!(split.iter().all(even), "{lengths:?} at {parallelism}");
            assert!((0..parallelism).all(|subtask| of(Redistribution::Union, subtask) == all));
        }
    }
}

#[test]
fn an_item_may_be_absent_and_become_a_wider_number() {
    let states = declared(Redistribution::Split, DataType::Int32);
    let lists = fresh(&states);
    append(&lists, Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])));
    let wider = Subtasks::new([lists]).restored(&held(), SnapshotKind::Portable, 2).unwrap();
    let read = |at: usize| wider.0[at].read(HELD, &[0], usize::MAX).unwrap().unwrap();
    let items = |at: usize| read(at).as_list::<i32>().value(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    assert_eq!((items(0), items(1)), (vec![Some(1)], vec![None, Some(3)]));
    let text = declared(Redistribution::Split, DataType::Utf8);
    for parallelism in [1, 2] {
        let lists = fresh(&states);
        append(&lists, Arc::new(Int32Array::from(vec![1])));
        let error = Subtasks::new([lists]).restored(&text, SnapshotKind::Portable, parallelism).err().unwrap();
        assert!(error.to_string().contains("'held' of operator 'buffer' is Int32"), "{error}");
    }
}

#[test]
fn what_is_missing_damaged_or_too_much_is_refused() {
    let lists = fresh(&held());
    append(&lists, numbers(0..10));
    let files = Arc::new(MemoryFiles::new());
    let kept = |allow_non_restored, items, own| {
        let mut piece = piece(&lists, &files, SnapshotKind::Portable);
        piece.from.allow_non_restored = allow_non_restored;
        piece.items = items;
        [RestoredList { name: "held".into(), own, pieces: vec![piece] }]
    };
    let refused = |states: &[State], restored: &[RestoredList]| {
        open(states, restored, 0, if restored[0].own { 1 } else { 2 }).err().unwrap().to_string()
    };
    let other = [State { name: "other".into(), ..held().remove(0) }];
    let message = refused(&other, &kept(false, 10, true));
    assert!(message.contains("'held'") && message.contains("--allow-non-restored"), "{message}");
    assert_eq!(open(&other, &kept(true, 10, true), 0, 1).unwrap().entries(), 0);
    for own in [true, false] {
        let message = refused(&held(), &kept(false, 11, own));
        assert!(message.contains("has 10 items, and the checkpoint names 11"), "{message}");
    }
    let damaged = kept(false, 10, false);
    files.damage(&damaged[0].pieces[0].from.handles[0].files[0].path, |bytes| bytes[100] ^= 1);
    assert!(refused(&held(), &damaged).contains("is damaged"));

    // Two subtasks had as much as one may have; one can't have both.
    let states = declared(Redistribution::Union, DataType::Utf8);
    let large = || {
        let lists = fresh(&states);
        append(&lists, Arc::new(StringViewArray::from(vec!["x".repeat(MAX_LIST_BYTES * 2 / 3)])));
        lists
    };
    let error =
        Subtasks::new([large(), large()]).restored(&states, SnapshotKind::Portable, 1).err().unwrap().to_string();
    assert!(error.contains("at parallelism 1") && error.contains("or at a higher one"), "{error}");
}
