//! The heap with a meter: how many bytes the current thread holds at most while something runs.
//!
//! Always holds: every call is passed on to the system's allocator unchanged. Must not know who allocates; what C code
//! takes by itself (a decompressor's tables) is not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static METERED: Metered = Metered;

thread_local! {
    /// Bytes allocated less bytes freed. Negative when more of what others allocated was freed here.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Most bytes that `work` held at one time beyond what was held before.
pub(crate) fn most_held(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    MOST.set(before);
    work();
    MOST.get().abs_diff(before)
}

fn count(bytes: isize) {
    // Neither variable has a destructor, so both are there for as long as the thread is.
    let held = HELD.get().wrapping_add(bytes);
    HELD.set(held);
    if held > MOST.get() {
        MOST.set(held);
    }
}

struct Metered;

// SAFETY: every method passes its arguments on to `System` and returns what that returns; counting allocates nothing.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(place, layout, bytes) }
    }
}
