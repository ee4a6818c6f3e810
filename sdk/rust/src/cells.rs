//! Typed things behind untyped handles: the states and side outputs of a process function.
//!
//! A process function holds handles (`ValueState<i64>`), its node holds what they stand for, of any number of types.
//! The access of a handle is in the hottest loop of keyed code, so it is a comparison and a cast rather than two virtual
//! calls. Invariant: a handle is made together with its cell, in the same collection at the same index and of the same
//! type, and cells are never moved to another index, exchanged or removed.
#![allow(unsafe_code, reason = "the one cast of this module, guarded by the collection's identity")]

use std::marker::PhantomData;
use std::sync::Arc;

/// Cells of different types that share an interface `D` (a `dyn Trait`).
pub(crate) struct Cells<D: ?Sized> {
    /// Who this collection is: as long as a handle exists its address is taken.
    identity: Arc<()>,
    cells: Vec<Box<D>>,
}

/// Stands for a cell of type `C`.
pub(crate) struct Handle<C> {
    identity: Arc<()>,
    index: usize,
    cell: PhantomData<fn() -> C>,
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Self { identity: Arc::clone(&self.identity), index: self.index, cell: PhantomData }
    }
}

impl<D: ?Sized> Default for Cells<D> {
    fn default() -> Self {
        // Not an `Arc<()>` that others could share: each collection has one of its own.
        Self { identity: Arc::new(()), cells: Vec::new() }
    }
}

impl<D: ?Sized> Cells<D> {
    /// Adds a cell of type `C`. `unsize` only coerces the box (`|b| b`): the cell stays a `C`.
    pub(crate) fn add<C: 'static>(&mut self, cell: C, unsize: fn(Box<C>) -> Box<D>) -> Handle<C> {
        let cell = Box::new(cell);
        let address = (&raw const *cell).cast::<()>();
        let cell = unsize(cell);
        // What a wrong `unsize` could do is excluded here, once, so that the cast below can rely on it.
        assert_eq!((&raw const *cell).cast::<()>(), address, "a coercion keeps the address");
        self.cells.push(cell);
        Handle { identity: Arc::clone(&self.identity), index: self.cells.len() - 1, cell: PhantomData }
    }

    /// The cell of a handle, if it is one of these.
    #[inline(always)]
    pub(crate) fn get_mut<C>(&mut self, handle: &Handle<C>) -> Option<&mut C> {
        if !Arc::ptr_eq(&self.identity, &handle.identity) {
            return None;
        }
        let cell = self.cells.get_mut(handle.index)?;
        // SAFETY: `add` is the only maker of handles; it put a `C` at this index of the collection with this identity,
        // and cells are never replaced. The borrow of `self` makes it the only reference.
        Some(unsafe { &mut *(&raw mut **cell).cast::<C>() })
    }

    /// As `get_mut`, for reading.
    #[inline(always)]
    pub(crate) fn get<C>(&self, handle: &Handle<C>) -> Option<&C> {
        if !Arc::ptr_eq(&self.identity, &handle.identity) {
            return None;
        }
        let cell = self.cells.get(handle.index)?;
        // SAFETY: as in `get_mut`, with a shared borrow.
        Some(unsafe { &*(&raw const **cell).cast::<C>() })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut D> {
        self.cells.iter_mut().map(|c| &mut **c)
    }
}
