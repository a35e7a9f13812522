//! The numbers of CPUs: they need not follow one another.
//!
//! A buffer has the number of its CPU. So a channel has as many buffers as the highest number that a CPU can have, and one more; a
//! count of CPUs would leave out the last ones where numbers are missing in between.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// What the kernel says of CPUs that there can be, online or not: `0-1,4-5`.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// One more than the highest number that a CPU of this machine can have.
pub fn count() -> usize {
    ranges().and_then(|ranges| ranges.iter().map(|(_, last)| last + 1).max()).unwrap_or_else(configured)
}

/// Whether there can be a CPU of this number, online or not.
pub fn is_possible(cpu: usize) -> bool {
    match ranges() {
        Some(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&cpu)),
        None => cpu < configured(),
    }
}

fn ranges() -> Option<Vec<(usize, usize)>> {
    parse(&fs::read_to_string(POSSIBLE).ok()?)
}

/// The number of CPUs, for where sysfs is not mounted.
fn configured() -> usize {
    let configured = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten();
    configured.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(1)
}

/// The first and last numbers of the ranges in a list of the kernel's; `None` if it is none.
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
    fn lists_of_cpus_are_read() {
        assert_eq!(parse("0\n"), Some(vec![(0, 0)]));
        assert_eq!(parse("0-1,4-5,7\n"), Some(vec![(0, 1), (4, 5), (7, 7)]));
        for wrong in ["", "\n", "0-", "-1", "3-1", "0,,1", "0-1-2", "all", "0-18446744073709551615"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn this_machine_has_some() {
        assert!(count() >= 1 && is_possible(count() - 1) && !is_possible(count()));
    }
}
