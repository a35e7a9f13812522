//! Limits of the machine: memory, descriptors.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fs, io, iter};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statvfs::statvfs;
use relay::system::mountinfo;

/// By default channels may take one part in `MEMORY_PART` of the memory.
pub(crate) const MEMORY_PART: u64 = 4;
/// Descriptors reserved for files, the log, epoll, and channels that are being created.
const FILES_RESERVED: u64 = 128;
/// Limits are rounded down to a multiple of this, so that people can read them, in bytes.
const ROUND: u64 = 1 << 20;
/// Memory to assume if neither the machine's nor its limits are known, in bytes.
const UNKNOWN: u64 = 256 << 20;

/// Returns the default limit of all channels' memory, in bytes.
///
/// This is a quarter of the smallest of RAM, the limits of the daemon's control groups, and the free space in the state
/// directory.
pub(crate) fn memory_max(state_dir: &Path) -> u64 {
    let limits = [ram(), cgroup_limit(), free_space(state_dir)];
    let part = limits.into_iter().flatten().min().unwrap_or(UNKNOWN) / MEMORY_PART;
    if part > ROUND { part - part % ROUND } else { part }
}

fn ram() -> Option<u64> {
    mem_total(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the free space of the file system, in bytes.
///
/// A ramfs has no limit, and reports 0 of 0.
fn free_space(dir: &Path) -> Option<u64> {
    let status = statvfs(dir).ok()?;
    (status.blocks() != 0).then(|| status.blocks_available().saturating_mul(status.fragment_size()))
}

/// Returns the lowest memory limit of the daemon's control groups (v1 and v2), in bytes.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = mountinfo::read().ok()?;
    let mount = |fits: &dyn Fn(&mountinfo::Entry) -> bool| {
        Some(mounts.iter().find(|mount| fits(mount))?.point.clone())
    };
    let has = |list: &str| list.split(',').any(|word| word == "memory");
    let v2 = mount(&|mount| mount.fs_type == "cgroup2").zip(group_path(&groups, &str::is_empty));
    let v1 =
        mount(&|mount| mount.fs_type == "cgroup" && has(&mount.super_options)).zip(group_path(&groups, &has));
    let v2 = v2.and_then(|(root, group)| lowest(&root, &group, "memory.max"));
    let v1 = v1.and_then(|(root, group)| lowest(&root, &group, "memory.limit_in_bytes"));
    v1.into_iter().chain(v2).min()
}

/// Returns the path in the line `ID:CONTROLLERS:PATH` whose controllers fit.
fn group_path(groups: &str, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        fits(controllers).then(|| PathBuf::from(path))
    })
}

/// Returns the lowest limit in `file`, from the group up to the root.
///
/// In a container the path may be the host's, and then only the root exists.
fn lowest(root: &Path, group: &Path, file: &str) -> Option<u64> {
    let group = group.strip_prefix("/").unwrap_or(group);
    // "max", the word of version 2 for no limit, does not parse as a number.
    group
        .ancestors()
        .filter_map(|dir| fs::read_to_string(root.join(dir).join(file)).ok()?.trim().parse().ok())
        .min()
}

/// Raises the limit of open files as far as allowed.
///
/// Returns how many connections fit, at most `wanted`.
pub(crate) fn connections_max(wanted: usize) -> usize {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        log::info!("cannot raise the limit of open files: {}", errno.desc());
    }
    let possible = connections_within(hard);
    if possible < wanted {
        log::info!("{possible} connections at most instead of {wanted}: the limit of open files is {hard}");
    }
    wanted.min(possible)
}

/// Returns what to do about a limit of this process that is behind an error. Empty if none is.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> &'static str {
    let mut causes = iter::successors(Some(error), |&error: &&(dyn Error + 'static)| error.source());
    let cause = causes.find_map(|error| error.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(libc::EMFILE) => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
        Some(libc::ENFILE) => "; raise the system's limit of open files (sysctl fs.file-max)",
        Some(libc::ENOMEM) => "; raise the limit of memory (ulimit -v, LimitAS=)",
        _ => "",
    }
}

/// Returns how many connections fit in a limit of open files.
pub(crate) fn connections_within(hard: u64) -> usize {
    usize::try_from(hard.saturating_sub(FILES_RESERVED)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_found() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16384));
        assert_eq!(mem_total("MemTotal: much\n"), None);
    }

    #[test]
    fn groups_of_both_versions_are_found() {
        let groups = "9:name=systemd:/\n4:cpu,memory:/a:b/c\n0::/user.slice\n";
        let has_memory = |list: &str| list.split(',').any(|word| word == "memory");
        assert_eq!(group_path(groups, &has_memory), Some("/a:b/c".into()));
        assert_eq!(group_path(groups, &str::is_empty), Some("/user.slice".into()));
        assert_eq!(group_path("4:cpu:/\n", &str::is_empty), None);
    }

    #[test]
    fn lowest_limit_up_to_the_root_counts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let set =
            |dir: &str, limit: &str| fs::write(root.path().join(dir).join("memory.max"), limit).unwrap();
        set("a/b", "max\n");
        assert_eq!(lowest(root.path(), Path::new("/a/b"), "memory.max"), None);
        set("a", "4096\n");
        assert_eq!(lowest(root.path(), Path::new("/a/b"), "memory.max"), Some(4096));
        set("", "1024\n");
        assert_eq!(lowest(root.path(), Path::new("/docker/1234"), "memory.max"), Some(1024));
    }

    #[test]
    fn memory_limit_of_this_machine_is_found() {
        assert!(memory_max(Path::new("/dev/shm")) > 1 << 20);
    }
}
