//! The open spans of each thread, as slices that nest.
//!
//! A slice ends the youngest open slice of its track, whatever it is called. Spans need not nest, and a record of a span
//! may be lost. So a span that ends is looked for in its thread's stack:
//!
//! - Younger spans that are its children end with it: their ends were lost.
//! - Other younger spans overlap it. Their slices end too, and begin again at once.
//! - A span without a begin has no slice to end.

use std::collections::HashMap;

/// Most open spans of a thread. A trace is hostile input.
const DEPTH_MAX: usize = 256;
/// Most open spans in all.
const OPEN_MAX: usize = 1 << 16;
/// Most slices that begin again at the end of another: the output must not outgrow a hostile trace.
const AGAIN_MAX: usize = 8;
/// Bytes of a name that are kept, for a slice that begins again.
const NAME_MAX: usize = 100;

/// A span that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of its process, 0 if that is not known.
    pub(super) owner: u32,
    pub(super) id: u64,
    /// The span in which it began, 0 for none.
    pub(super) parent: u64,
    pub(super) name: Vec<u8>,
    /// When its slice began.
    pub(super) begun: u64,
}

/// A change of a track's slices.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The youngest slice ends; it began at this time. The flag says whether the span's own end is missing.
    End { track: u64, begun: u64, unfinished: bool },
    /// A slice continues a span.
    Again { track: u64, id: u64, name: Vec<u8> },
}

/// The open spans.
#[derive(Debug, Default)]
pub(super) struct Spans {
    stacks: HashMap<u64, Vec<Span>>,
    /// The track of a span, by owner and id.
    tracks: HashMap<(u32, u64), u64>,
    n_open: usize,
}

impl Spans {
    /// Begins a span on a track. Returns false if too many are open.
    pub(super) fn begin(&mut self, track: u64, mut span: Span) -> bool {
        let stack = self.stacks.entry(track).or_default();
        if stack.len() >= DEPTH_MAX || self.n_open >= OPEN_MAX {
            return false;
        }
        span.name.truncate(NAME_MAX);
        self.tracks.insert((span.owner, span.id), track);
        stack.push(span);
        self.n_open += 1;
        true
    }

    /// Ends a span at this time; `track` is that of the thread that ends it. Empty if the span is not open.
    pub(super) fn end(&mut self, track: u64, owner: u32, id: u64, time: u64) -> Vec<Step> {
        let elsewhere = self.tracks.get(&(owner, id)).copied();
        for track in [Some(track), elsewhere].into_iter().flatten() {
            let stack = self.stacks.get(&track).map_or(&[][..], |stack| stack);
            if let Some(at) = stack.iter().rposition(|span| (span.owner, span.id) == (owner, id)) {
                return self.end_at(track, at, time);
            }
        }
        Vec::new()
    }

    /// Ends the span at this place of a track's stack.
    fn end_at(&mut self, track: u64, at: usize, time: u64) -> Vec<Step> {
        let Some(stack) = self.stacks.get_mut(&track) else { return Vec::new() };
        let mut ended = stack.split_off(at);
        let mut steps: Vec<Step> = Vec::new();
        let mut children = vec![ended[0].id];
        let mut overlapping = Vec::new();
        for span in ended.drain(..) {
            let is_target = steps.is_empty();
            let is_child = is_target || children.contains(&span.parent);
            if is_child {
                children.push(span.id);
            }
            let is_over = is_child || overlapping.len() >= AGAIN_MAX;
            steps.push(Step::End { track, begun: span.begun, unfinished: !is_target && is_over });
            if is_over {
                self.n_open -= 1;
                if self.tracks.get(&(span.owner, span.id)) == Some(&track) {
                    self.tracks.remove(&(span.owner, span.id));
                }
            } else {
                overlapping.push(Span { begun: time.max(span.begun), ..span });
            }
        }
        // The youngest slice is the first to end.
        steps.reverse();
        steps.extend(overlapping.iter().map(|Span { id, name, .. }| Step::Again {
            track,
            id: *id,
            name: name.clone(),
        }));
        stack.extend(overlapping);
        steps
    }

    /// Ends all spans of a process.
    pub(super) fn end_process(&mut self, owner: u32) -> Vec<Step> {
        self.end_stacks(|stack| stack.first().is_some_and(|span| span.owner == owner))
    }

    /// Ends all spans.
    pub(super) fn end_all(&mut self) -> Vec<Step> {
        self.end_stacks(|_| true)
    }

    fn end_stacks(&mut self, is_over: impl Fn(&[Span]) -> bool) -> Vec<Step> {
        let mut steps = Vec::new();
        for (track, stack) in self.stacks.iter_mut().filter(|(_, stack)| is_over(stack)) {
            self.n_open -= stack.len();
            while let Some(span) = stack.pop() {
                if self.tracks.get(&(span.owner, span.id)) == Some(track) {
                    self.tracks.remove(&(span.owner, span.id));
                }
                steps.push(Step::End { track: *track, begun: span.begun, unfinished: true });
            }
        }
        self.stacks.retain(|_, stack| !stack.is_empty());
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(spans: &mut Spans, track: u64, id: u64, parent: u64) {
        let name = id.to_string().into_bytes();
        assert!(spans.begin(track, Span { owner: 1, id, parent, name, begun: id }));
    }

    fn end(begun: u64, unfinished: bool) -> Step {
        Step::End { track: 7, begun, unfinished }
    }

    #[test]
    fn nested_spans_end_one_by_one() {
        let mut spans = Spans::default();
        begin(&mut spans, 7, 1, 0);
        begin(&mut spans, 7, 2, 1);
        assert_eq!(spans.end(7, 1, 2, 9), [end(2, false)]);
        assert_eq!(spans.end(7, 1, 2, 9), []);
        assert_eq!(spans.end(7, 1, 1, 9), [end(1, false)]);
        assert!(spans.end_all().is_empty() && spans.tracks.is_empty() && spans.n_open == 0);
    }

    #[test]
    fn children_without_an_end_end_with_their_parent() {
        let mut spans = Spans::default();
        begin(&mut spans, 7, 1, 0);
        begin(&mut spans, 7, 2, 1);
        begin(&mut spans, 7, 3, 2);
        assert_eq!(spans.end(7, 1, 1, 9), [end(3, true), end(2, true), end(1, false)]);
        assert_eq!(spans.end(7, 1, 3, 9), []);
        assert!(spans.end_all().is_empty() && spans.tracks.is_empty() && spans.n_open == 0);
    }

    #[test]
    fn overlapping_spans_continue() {
        let mut spans = Spans::default();
        begin(&mut spans, 7, 1, 0);
        begin(&mut spans, 7, 2, 0);
        begin(&mut spans, 7, 3, 1);
        let again = Step::Again { track: 7, id: 2, name: b"2".to_vec() };
        assert_eq!(spans.end(7, 1, 1, 9), [end(3, true), end(2, false), end(1, false), again]);
        assert_eq!(spans.end(7, 1, 2, 12), [end(9, false)]);
        assert_eq!(spans.n_open, 0);
    }

    #[test]
    fn another_thread_of_the_process_can_end_a_span() {
        let mut spans = Spans::default();
        begin(&mut spans, 7, 1, 0);
        assert_eq!(spans.end(8, 2, 1, 9), [], "another process");
        assert_eq!(spans.end(8, 1, 1, 9), [end(1, false)]);
    }

    #[test]
    fn a_process_ends_with_its_spans() {
        let mut spans = Spans::default();
        begin(&mut spans, 7, 1, 0);
        begin(&mut spans, 7, 2, 0);
        assert!(spans.begin(8, Span { owner: 2, id: 1, parent: 0, name: Vec::new(), begun: 5 }));
        assert_eq!(spans.end_process(1), [end(2, true), end(1, true)]);
        assert_eq!(spans.end_all(), [Step::End { track: 8, begun: 5, unfinished: true }]);
        assert_eq!(spans.n_open, 0);
    }

    #[test]
    fn hostile_spans_take_bounded_memory_and_output() {
        let mut spans = Spans::default();
        let span = |id| Span { owner: 1, id, parent: 0, name: vec![b'n'; 1 << 16], begun: id };
        let begun = (1..1000).filter(|id| spans.begin(7, span(*id))).count();
        assert_eq!(begun, DEPTH_MAX);
        let steps = spans.end(7, 1, 1, 9);
        let again = steps.iter().filter(|step| matches!(step, Step::Again { .. })).count();
        assert_eq!((steps.len(), again), (DEPTH_MAX + AGAIN_MAX, AGAIN_MAX));
        assert_eq!(spans.n_open, AGAIN_MAX);
        for track in 0..2 * OPEN_MAX as u64 {
            spans.begin(track, Span { owner: 1, id: 1, parent: 0, name: Vec::new(), begun: 1 });
        }
        assert_eq!(spans.n_open, OPEN_MAX);
    }

    /// Whatever begins and ends, each track's slices nest, and the counts agree.
    #[test]
    fn slices_always_nest() {
        let mut spans = Spans::default();
        let mut depths: HashMap<u64, i64> = HashMap::new();
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let apply = |steps: Vec<Step>, depths: &mut HashMap<u64, i64>| {
            for step in steps {
                let (track, change) = match step {
                    Step::End { track, .. } => (track, -1),
                    Step::Again { track, .. } => (track, 1),
                };
                let depth = depths.entry(track).or_default();
                *depth += change;
                assert!(*depth >= 0);
            }
        };
        for time in 0..20_000 {
            let (track, owner) = (random(4), random(2) as u32);
            let id = random(12);
            match random(30) {
                0 => apply(spans.end_process(owner), &mut depths),
                n if n % 2 == 0 => {
                    let span = Span { owner, id, parent: random(12), name: Vec::new(), begun: time };
                    *depths.entry(track).or_default() += i64::from(spans.begin(track, span));
                }
                _ => apply(spans.end(track, owner, id, time), &mut depths),
            }
            assert_eq!(depths.values().sum::<i64>(), spans.n_open as i64);
        }
        apply(spans.end_all(), &mut depths);
        assert!(depths.values().all(|depth| *depth == 0) && spans.tracks.is_empty());
    }
}
