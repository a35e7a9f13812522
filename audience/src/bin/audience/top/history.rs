//! The rates of the last minute, one for each look.

use std::collections::{BTreeMap, VecDeque};

use crate::monitor::look::Look;
use crate::monitor::rates::Rates;

/// Looks that are kept.
const KEPT: usize = 60;
/// Steps of a bar.
const STEPS: [char; 8] =
    ['\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];

/// Bytes a second by channel and buffer, the newest last.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<String, Vec<VecDeque<f64>>>);

impl History {
    /// Adds the rates of a look, and forgets channels that are gone.
    pub(super) fn add(&mut self, look: &Look, rates: &BTreeMap<String, Vec<Rates>>) {
        self.0.retain(|name, _| look.channel(name).is_some());
        for (name, rates) in rates {
            let buffers = self.0.entry(name.clone()).or_default();
            buffers.resize(rates.len(), VecDeque::new());
            for (kept, rates) in buffers.iter_mut().zip(rates) {
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(rates.bytes);
            }
        }
    }

    /// Returns the last minute of a buffer, or of all of a channel, as a line of `width` characters.
    pub(super) fn line(&self, name: &str, cpu: Option<usize>, width: usize) -> String {
        let Some(buffers) = self.0.get(name) else { return String::new() };
        let chosen = buffers.iter().enumerate().filter(|(at, _)| cpu.is_none_or(|cpu| cpu == *at));
        let mut sums: Vec<f64> = Vec::new();
        for (_, kept) in chosen {
            sums.resize(sums.len().max(kept.len()), 0.0);
            // All of them end now.
            let offset = sums.len() - kept.len();
            sums[offset..].iter_mut().zip(kept).for_each(|(sum, rate)| *sum += rate);
        }
        line_of(&sums, width)
    }
}

/// Draws values as bars relative to the greatest, the newest at the right.
fn line_of(values: &[f64], width: usize) -> String {
    let max = values.iter().copied().fold(0.0, f64::max);
    let per_cell = KEPT.div_ceil(width.max(1));
    let cells = values.rchunks(per_cell).take(width);
    let mut line: Vec<char> = cells
        .map(|cell| {
            let value = cell.iter().copied().fold(0.0, f64::max);
            match max > 0.0 && value > 0.0 {
                true => STEPS[((value / max * STEPS.len() as f64).ceil() as usize).clamp(1, STEPS.len()) - 1],
                false => ' ',
            }
        })
        .collect();
    line.reverse();
    format!("{:>width$}", line.into_iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_values_are_at_the_right() {
        assert_eq!(line_of(&[0.0, 4.0, 8.0], 60).trim_start(), "\u{2584}\u{2588}");
        assert_eq!(line_of(&[0.0, 4.0, 8.0], 60).chars().count(), 60);
        assert_eq!(line_of(&[], 5), "     ");
        let long: Vec<f64> = (0..60).map(f64::from).collect();
        assert_eq!(line_of(&long, 6).chars().count(), 6);
        assert_eq!(line_of(&long, 0), "");
    }
}
