//! What is the same for all mount points: device, privileges, processor, kernel.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use nix::unistd::{User, geteuid};
use relay::clock::Clock;
use relay::layout::paths::shell_word;
use relay::ring::writer::AnyExecutor;
use relay::system::mountinfo;

use super::Finding;
use crate::config::cli::CONNECTIONS_MAX_DEFAULT;
use crate::mount::{self, FUSE_DEVICE};
use crate::process::host_limits::connections_within;
use crate::process::pidfd;

/// The first release of Linux in which a FUSE server can have its files mapped.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// The only places, besides /sbin/fs, where mount(8) looks for the helper of a type.
const HELPERS: [&str; 3] = ["/sbin/mount.relayfs", "/sbin/fs.d/mount.relayfs", "/sbin/fs/mount.relayfs"];
const FUSE_CONF: &str = "/etc/fuse.conf";

/// Returns the findings.
pub(super) fn findings() -> Vec<Finding> {
    let is_root = geteuid().is_root();
    let device = device(is_root);
    let mut findings = vec![device, privileges(is_root), passthrough(is_root), sequences(), clock(), ends()];
    if is_root {
        findings.push(helper());
    } else {
        findings.extend([allow_other(), lingering()].into_iter().flatten());
    }
    findings.push(descriptors());
    findings
}

fn device(is_root: bool) -> Finding {
    const THING: &str = "device";
    match OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) {
        Ok(_) => Finding::works(THING, format!("{FUSE_DEVICE} can be opened")),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Finding::fails(
                THING,
                format!("{FUSE_DEVICE}: {error}"),
                format!("modprobe fuse; in a container: --device {FUSE_DEVICE}"),
            ),
            // In a container, also root may not open it.
            _ if is_root => Finding::fails(
                THING,
                format!("{FUSE_DEVICE}: {error}"),
                format!("in a container: --device {FUSE_DEVICE}"),
            ),
            _ => Finding::fails(
                THING,
                format!("{FUSE_DEVICE}: {error}, so this user cannot mount"),
                format!("chmod 666 {FUSE_DEVICE}"),
            ),
        },
    }
}

fn privileges(is_root: bool) -> Finding {
    const THING: &str = "privileges";
    if is_root {
        return match caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN) {
            Ok(true) => Finding::works(THING, "root with CAP_SYS_ADMIN mounts by itself"),
            _ => Finding::fails(
                THING,
                "root without CAP_SYS_ADMIN cannot mount",
                "in a container: --cap-add SYS_ADMIN, and perhaps --security-opt apparmor=unconfined",
            ),
        };
    }
    let install = "apt-get install fuse3, or run relayfsd as root";
    match mount::helper() {
        None => Finding::fails(THING, "mounting takes fusermount3, which is not in PATH", install),
        Some(path) => {
            let mode = fs::metadata(&path).map_or(0, |status| status.permissions().mode());
            let shown = path.display();
            if mode & 0o4000 == 0 {
                let text = format!("{shown} is not set-uid, so it cannot mount for this user");
                Finding::fails(THING, text, format!("chmod u+s {}", shell_word(&path)))
            } else if no_new_privileges() {
                let text = format!("{shown} gets no privileges: this process has no_new_privs");
                Finding::fails(THING, text, "start relayfsd outside of the sandbox, or as root")
            } else {
                Finding::works(THING, format!("{shown} mounts for this user"))
            }
        }
    }
}

fn no_new_privileges() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]))
}

fn passthrough(is_root: bool) -> Finding {
    const THING: &str = "passthrough";
    const COST: &str = "map/cpuN cannot be mapped; all else works, and audience::Reader maps by the socket";
    let release =
        uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
    match version(&release) {
        Some(version) if version < PASSTHROUGH_SINCE => {
            Finding::costs(THING, format!("Linux {release}: {COST}"), "use Linux 6.9 or later")
        }
        _ if !is_root => Finding::costs(THING, format!("a user's mount: {COST}"), "run relayfsd as root"),
        Some(_) => Finding::works(THING, format!("Linux {release}: programs can map map/cpuN")),
        None => Finding::costs(THING, format!("unknown release '{release}' of the kernel"), "uname -r"),
    }
}

/// Returns the first two numbers of a release of Linux.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn sequences() -> Finding {
    const THING: &str = "sequences";
    if AnyExecutor::can_share() {
        return Finding::works(
            THING,
            "restartable sequences (rseq): producers can write the buffers directly",
        );
    }
    let mend = "use x86-64 or aarch64 with Linux 4.19 or later, outside of valgrind and gVisor, and let seccomp filters pass rseq(2)";
    let text = "no restartable sequences (rseq): producers send by the socket, more than a thousand times slower in single messages";
    Finding::costs(THING, text, mend)
}

fn clock() -> Finding {
    const THING: &str = "clock";
    match Clock::choose() {
        Clock::Tsc => Finding::works(THING, "the processor's counter (tsc) stamps messages"),
        clock => {
            let text = format!("{} stamps messages: some 20 ns more for each", clock.name());
            let mend = "echo tsc >/sys/devices/system/clocksource/clocksource0/current_clocksource, if the kernel \
                        offers it there; a virtual machine needs an invariant TSC from its host";
            Finding::costs(THING, text, mend)
        }
    }
}

/// Whether relayfsd learns how a process has ended.
fn ends() -> Finding {
    const THING: &str = "ends of processes";
    const COST: &str =
        "a process that fails may leave no record of its end, except under relay-producer --exec";
    match pidfd::kernel_tells() {
        Ok(true) => {
            Finding::works(THING, "a process that fails leaves a record of its end in its timed channels")
        }
        Ok(false) => {
            let text = format!("this kernel does not tell how a process ended: {COST}");
            Finding::costs(THING, text, "use Linux 6.15 or later")
        }
        Err(error) => Finding::costs(
            THING,
            format!("cannot try it: {error}: {COST}"),
            "mount /proc, and use Linux 6.15 or later",
        ),
    }
}

fn helper() -> Finding {
    const THING: &str = "mount helper";
    match HELPERS.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Finding::works(THING, format!("{path}: mount -t relayfs works, and fstab")),
        None => {
            let ours = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/relayfsd".into());
            let mend = format!("ln -s {} {}", shell_word(&ours), HELPERS[0]);
            Finding::costs(
                THING,
                "there is none: mount -t relayfs does not work, nor fstab with that type",
                mend,
            )
        }
    }
}

/// Whether a user may let others into a mount.
fn allow_other() -> Option<Finding> {
    const THING: &str = "user_allow_other";
    let conf = fs::read_to_string(FUSE_CONF).unwrap_or_default();
    Some(if conf.lines().any(|line| line.trim() == THING) {
        Finding::works(THING, format!("in {FUSE_CONF}: --group works for this user's mounts"))
    } else {
        Finding::costs(
            THING,
            format!("not in {FUSE_CONF}: --group and -o allow_other do not work for this user's mounts"),
            format!("as root: echo {THING} >>{FUSE_CONF}"),
        )
    })
}

/// Whether systemd-logind removes a user's buffers when the user logs out (RemoveIPC=yes, its default).
fn lingering() -> Option<Finding> {
    const THING: &str = "logging out";
    if !Path::new("/run/systemd/seats").exists() {
        return None;
    }
    let user = User::from_uid(geteuid()).ok().flatten()?;
    // Those of the system are left alone.
    if user.uid.as_raw() < 1000 {
        return None;
    }
    let lingers = PathBuf::from("/var/lib/systemd/linger").join(&user.name).exists();
    Some(if lingers {
        Finding::works(THING, "this user lingers: the buffers stay")
    } else {
        Finding::costs(
            THING,
            "systemd-logind removes this user's buffers in /dev/shm when the user logs out",
            "loginctl enable-linger, or --state-dir elsewhere",
        )
    })
}

fn descriptors() -> Finding {
    const THING: &str = "open files";
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Finding::works(THING, "no limit is known");
    };
    let possible = connections_within(hard);
    if possible < CONNECTIONS_MAX_DEFAULT {
        let text = format!(
            "the hard limit is {hard}: {possible} producers at a time instead of {CONNECTIONS_MAX_DEFAULT}"
        );
        return Finding::costs(THING, text, "ulimit -Hn 8192, or LimitNOFILE=8192 in the unit");
    }
    let proc = if mountinfo::open().is_ok() { "" } else { "; /proc is not mounted" };
    Finding::works(THING, format!("the hard limit is {hard}{proc}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_linux_are_compared_by_numbers() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.15.0-rc1"), Some((5, 15)));
        assert_eq!(version("odd"), None);
        assert!(version("6.10.1") > Some(PASSTHROUGH_SINCE));
    }
}
