//! The table of the program's places: found by address, without a lock.

use ::tracing::Metadata;
use once_cell::race::OnceBox;

use crate::tracing::site::Site;

/// Places of the first table.
const FIRST: usize = 1024;
/// Places that a look-up tries in one table.
const TRIES: usize = 8;

/// A table, and a larger one for what has no place in it.
pub(super) struct Sites {
    slots: Box<[OnceBox<Site>]>,
    next: OnceBox<Sites>,
}

impl Default for Sites {
    fn default() -> Sites {
        Sites::with(FIRST)
    }
}

impl Sites {
    /// `len` is a power of two.
    fn with(len: usize) -> Sites {
        Sites { slots: (0..len).map(|_| OnceBox::new()).collect(), next: OnceBox::new() }
    }

    /// Returns the place with this metadata, whose address is its identity.
    #[inline(always)]
    pub(super) fn of(&self, metadata: &'static Metadata<'static>) -> &Site {
        let first = self.first(metadata);
        match self.slots[first].get() {
            Some(site) if std::ptr::eq(site.metadata(), metadata) => site,
            _ => self.find(first, metadata),
        }
    }

    #[inline(always)]
    fn first(&self, metadata: &'static Metadata<'static>) -> usize {
        let address = std::ptr::from_ref(metadata).addr() as u64;
        let mixed = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.slots.len() - 1)
    }

    #[cold]
    #[inline(never)]
    fn find(&self, first: usize, metadata: &'static Metadata<'static>) -> &Site {
        for at in first..first + TRIES {
            let slot = &self.slots[at & (self.slots.len() - 1)];
            let site = slot.get_or_init(|| Box::new(Site::new(metadata)));
            if std::ptr::eq(site.metadata(), metadata) {
                return site;
            }
        }
        let next = self.next.get_or_init(|| Box::new(Sites::with(self.slots.len() * 4)));
        next.find(next.first(metadata), metadata)
    }
}
