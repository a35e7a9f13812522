//! Numbers over time, in a bounded number of steps: steps double when there are too many.

/// Most steps of a series.
const STEPS_MAX: usize = 360;
/// Least length of a step, in nanoseconds: a millisecond.
const STEP_MIN: u64 = 1_000_000;

/// What happened in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
    /// Thousandths, the highest in the step; `None` if it is not known.
    pub(super) fill: Option<u16>,
}

/// A series of steps of equal length.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Begin of the first step, in nanoseconds since 1970. `None` if nothing has come.
    begin: Option<u64>,
    step: u64,
    steps: Vec<Step>,
}

impl Series {
    /// A series whose steps have at least this length in nanoseconds: that between two looks.
    pub(super) fn new(step: u64) -> Series {
        Series { begin: None, step: step.max(STEP_MIN), steps: Vec::new() }
    }

    /// Adds what happened at a time.
    pub(super) fn add(&mut self, time: u64, what: Step) {
        let begin = *self.begin.get_or_insert(time);
        let mut at = time.saturating_sub(begin) / self.step;
        while at >= STEPS_MAX as u64 {
            self.steps = self
                .steps
                .chunks(2)
                .map(|pair| pair.iter().copied().reduce(Step::and).unwrap_or_default())
                .collect();
            self.step *= 2;
            at /= 2;
        }
        let at = at as usize;
        if self.steps.len() <= at {
            self.steps.resize(at + 1, Step::default());
        }
        self.steps[at] = self.steps[at].and(what);
    }

    /// Begin of the first step, in nanoseconds since 1970.
    pub(super) fn begin(&self) -> Option<u64> {
        self.begin
    }

    /// Length of a step in nanoseconds.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl Step {
    fn and(self, other: Step) -> Step {
        Step {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
            lost: self.lost.saturating_add(other.lost),
            fill: self.fill.max(other.fill),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(fill: u16) -> Step {
        Step { messages: 1, bytes: 10, lost: 2, fill: Some(fill) }
    }

    #[test]
    fn steps_double_and_nothing_gets_lost() {
        let mut series = Series::new(0);
        for n in 0..10_000_u64 {
            series.add(1_000 + n * STEP_MIN, one((n % 1000) as u16));
        }
        assert_eq!(series.begin(), Some(1_000));
        assert_eq!(series.step(), 32 * STEP_MIN);
        assert!(series.steps().len() <= STEPS_MAX);
        let sum = series.steps().iter().copied().reduce(Step::and).unwrap();
        assert_eq!(sum, Step { messages: 10_000, bytes: 100_000, lost: 20_000, fill: Some(999) });
    }

    #[test]
    fn any_time_has_a_step() {
        let mut series = Series::new(0);
        for time in [5, 0, u64::MAX, 7] {
            series.add(time, one(1));
        }
        assert_eq!(series.steps().iter().map(|step| step.messages).sum::<u64>(), 4);
        assert!(series.steps().len() <= STEPS_MAX);
    }
}
