//! Numbers of CPUs, which may have gaps.
//!
//! A buffer has the number of its CPU. So a channel has one more buffer than the highest possible CPU number. A count
//! of CPUs would miss the last ones if numbers in between are missing.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// The kernel's list of possible CPUs, online or not: `0-1,4-5`.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Returns one more than the highest possible CPU number of this machine.
pub fn count() -> usize {
    ranges().and_then(|ranges| ranges.iter().map(|(_, last)| last + 1).max()).unwrap_or_else(configured)
}

/// Returns whether a CPU of this number is possible, online or not.
pub fn is_possible(cpu: usize) -> bool {
    match ranges() {
        Some(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&cpu)),
        None => cpu < configured(),
    }
}

fn ranges() -> Option<Vec<(usize, usize)>> {
    parse(&fs::read_to_string(POSSIBLE).ok()?)
}

/// Returns the number of CPUs. Used if sysfs is not mounted.
fn configured() -> usize {
    let configured = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten();
    configured.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(1)
}

/// Parses a list of ranges as the kernel writes it; `None` if the text is not one.
fn parse(list: &str) -> Option<Vec<(usize, usize)>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < usize::MAX).then_some((first, last))
    };
    list.trim_end().split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_cpus_is_parsed() {
        assert_eq!(parse("0\n"), Some(vec![(0, 0)]));
        assert_eq!(parse("0-1,4-5,7\n"), Some(vec![(0, 1), (4, 5), (7, 7)]));
        for wrong in ["", "\n", "0-", "-1", "3-1", "0,,1", "0-1-2", "all", "0-18446744073709551615"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn this_machine_has_cpus() {
        assert!(count() >= 1 && is_possible(count() - 1) && !is_possible(count()));
    }
}
