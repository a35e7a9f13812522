//! Models of the owners of areas for restartable sequences: K and L of `area_owners.rs`.
//!
//! An area is a cell here, so that two stores without an order between them are an error.

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use relay::ring::area_owners::{Owner, Owners};
use relay::ring::scheduler_model::AtomicU64;

use super::{Ordering, beside, model, thread};

/// One area, and what the kernel says about its first owner.
struct Area {
    word: [AtomicU64; 1],
    stored: Cell<u64>,
    has_ended: AtomicBool,
}

impl Area {
    fn new() -> Arc<Area> {
        let area =
            Area { word: [AtomicU64::default()], stored: Cell::new(0), has_ended: AtomicBool::new(false) };
        area.owners().free_all();
        Arc::new(area)
    }

    fn owners(&self) -> Owners<'_> {
        Owners::new(&self.word)
    }

    /// Takes the area for a thread, if it is free, and stores there.
    fn take(&self, tid: u32) -> bool {
        let taken = self.owners().take(0, Owner::new(tid, u64::from(tid)).unwrap()).is_some();
        if taken {
            self.stored.set(u64::from(tid));
        }
        taken
    }
}

/// The area of a thread that ends has at most one next owner, whose stores come after.
#[test]
fn area_of_ended_thread_has_one_next_owner() {
    model(|| {
        let area = Area::new();
        assert!(area.take(7));
        let (first, looking, other) = (Arc::clone(&area), Arc::clone(&area), Arc::clone(&area));
        let end = thread::spawn(move || {
            first.stored.set(1);
            // As the kernel, which orders a thread's end before the answer that there is no such thread.
            first.has_ended.store(true, Ordering::Release);
        });
        let look = move || {
            looking.owners().free_ended(|tid| tid == 7 && looking.has_ended.load(Ordering::Acquire));
            looking.take(8)
        };
        let (by_looking, by_other) = beside(look, move || other.take(9));
        assert!(!(by_looking && by_other), "an area of two threads");
        end.join().unwrap();
    });
}

/// An area that is given back, since the kernel did not register it, is as good as new.
#[test]
fn area_given_back_is_taken_after_it() {
    model(|| {
        let area = Area::new();
        let (one, other) = (Arc::clone(&area), Arc::clone(&area));
        let try_once = |area: Arc<Area>, tid| {
            move || {
                let taken = area.take(tid);
                if taken {
                    area.owners().give_back(0);
                }
                taken
            }
        };
        let (one, other) = beside(try_once(one, 7), try_once(other, 8));
        assert!(one || other);
    });
}

/// After a fork, other threads take none of the parent's areas before the thread that forked has freed them.
#[test]
fn areas_of_parent_are_taken_after_they_are_freed() {
    model(|| {
        let words = Arc::new([AtomicU64::default(), AtomicU64::default()]);
        let cells = Arc::new([Cell::new(0), Cell::new(0)]);
        let (forked, other) = (Arc::clone(&words), Arc::clone(&words));
        let (its_cells, other_cells) = (Arc::clone(&cells), Arc::clone(&cells));
        let adopt = move || {
            its_cells[0].set(7);
            its_cells[1].set(7); // what the parent's thread has left there
            relay::ring::area_owners::adopt(&forked[0], Owner::new(7, 2).unwrap());
            Owners::new(&*forked).free_of_parent();
            its_cells[0].set(7);
        };
        let take = move || {
            let taken = Owners::new(&*other).take(0, Owner::new(8, 1).unwrap());
            if let Some(at) = taken {
                other_cells[at].set(8);
            }
            taken
        };
        let ((), taken) = beside(adopt, take);
        assert!(taken != Some(0), "the area of the thread that forked");
    });
}
