//! A value for each CPU, found by the thread that runs there.

use super::{RseqExecutor, Sequences, ThreadArea};

/// A value for each CPU.
///
/// Where the C library registers the threads' areas, the way to the caller's value has one comparison.
#[derive(Debug)]
pub struct PerCpu<T> {
    sequences: Option<Sequences>,
    /// Distance of the C library's areas from the thread pointer. If it registers none, this is 0: the words there are the
    /// C library's, and can be read. They say nothing, and `by_c_library` is empty.
    offset: isize,
    by_c_library: Box<[T]>,
    /// The values, if the C library registers no areas.
    by_own_areas: Box<[T]>,
}

impl<T> PerCpu<T> {
    /// Takes the values of all CPUs in their order.
    pub fn new(sequences: Option<Sequences>, values: Vec<T>) -> PerCpu<T> {
        let (values, none) = (values.into_boxed_slice(), Box::default());
        match sequences.and_then(Sequences::of_c_library) {
            Some(area) => PerCpu { sequences, offset: area.offset, by_c_library: values, by_own_areas: none },
            None => PerCpu { sequences, offset: 0, by_c_library: none, by_own_areas: values },
        }
    }

    /// Returns the values of all CPUs.
    pub fn all(&self) -> &[T] {
        if self.by_own_areas.is_empty() { &self.by_c_library } else { &self.by_own_areas }
    }

    /// Returns the value of the caller's CPU, which must be `only` if given.
    pub fn here(&self, only: Option<usize>) -> Option<(&T, RseqExecutor)> {
        value_at(self.all(), self.sequences?.here(), only)
    }

    /// Returns the same where the C library has registered the calling thread; `None` elsewhere, and [`Self::here`] has
    /// to look.
    #[inline(always)]
    pub fn here_by_c_library(&self, only: Option<usize>) -> Option<(&T, RseqExecutor)> {
        value_at(&self.by_c_library, ThreadArea::at(self.offset), only)
    }
}

#[inline(always)]
fn value_at<T>(values: &[T], area: ThreadArea, only: Option<usize>) -> Option<(&T, RseqExecutor)> {
    // The number exceeds that of the values if the thread is not registered.
    let cpu = area.cpu();
    if only.is_some_and(|only| only != cpu) {
        return None;
    }
    Some((values.get(cpu)?, area.on(cpu)))
}
