//! Paths of a mount's socket and state directory, derived from its mount point alone.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Name of the symbolic link to the socket, relative to the mount point.
pub const SOCKET_LINK: &str = ".relay/socket";
/// The default mount point.
const MOUNT_DEFAULT: &str = "/mnt/relay";
/// Environment variable that names the mount point or the socket.
pub const MOUNT_ENV: &str = "RELAYFS";

/// Returns the mount point or socket for programs without an explicit one.
/// The environment variable names it; if that is unset or empty, the default applies.
pub fn mount_by_environment() -> PathBuf {
    let named = std::env::var_os(MOUNT_ENV).filter(|path| !path.is_empty());
    named.map_or_else(|| MOUNT_DEFAULT.into(), PathBuf::from)
}

/// Returns a mount point's name as `systemd-escape --path` writes it.
/// `/mnt/relay` gives `mnt-relay`. A name longer than a file name may be is cut, and a hash of the whole path keeps it
/// distinct.
pub fn instance_name(mount_point: &Path) -> String {
    const LEN_MAX: usize = 200;
    let bytes = mount_point.as_os_str().as_bytes();
    let mut name = String::new();
    for part in bytes.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
        if !name.is_empty() {
            name.push('-');
        }
        for &b in part {
            let plain = b.is_ascii_alphanumeric() || b":_.".contains(&b);
            if plain && !(b == b'.' && name.is_empty()) {
                name.push(b.into());
            } else {
                name.push_str(&format!("\\x{b:02x}"));
            }
        }
    }
    if name.is_empty() {
        name.push('-'); // the root directory, as in systemd
    }
    if name.len() > LEN_MAX {
        name.truncate(LEN_MAX - 17);
        name.push_str(&format!("-{:016x}", fnv1a(bytes)));
    }
    name
}

/// Directory of the users' state directories; each user has one called [`state_dirs_name`].
pub const STATE_BASE: &str = "/dev/shm";

/// Returns the name of the directory with a user's state directories: `relayfs-UID`.
pub fn state_dirs_name(uid: u32) -> String {
    format!("relayfs-{uid}")
}

/// Returns the state directory of a mount: `/dev/shm/relayfs-UID/NAME`.
pub fn state_dir(mount_point: &Path, uid: u32) -> PathBuf {
    Path::new(STATE_BASE).join(state_dirs_name(uid)).join(instance_name(mount_point))
}

/// Returns a path quoted as one word of a shell command.
pub fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Returns the path of a mount's socket, the only file in its directory.
/// For root that is `/run/relayfs/NAME/socket`. For another user it lies below `runtime_dir` (`$XDG_RUNTIME_DIR`), or
/// below the user's directory on /dev/shm if there is none.
pub fn socket_path(mount_point: &Path, uid: u32, runtime_dir: Option<&Path>) -> PathBuf {
    let base = match runtime_dir {
        _ if uid == 0 => PathBuf::from("/run/relayfs"),
        Some(dir) => dir.join("relayfs"),
        // An instance name never starts with a dot, so `.run` cannot collide with one.
        None => Path::new(STATE_BASE).join(state_dirs_name(uid)).join(".run"),
    };
    base.join(instance_name(mount_point)).join("socket")
}

/// Hashes with FNV-1a, 64 bit.
/// Unlike the standard library's hasher it is stable over releases.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values printed by `systemd-escape --path`.
    #[test]
    fn instance_name_is_that_of_systemd_escape() {
        for (path, name) in [
            ("/mnt/relay", "mnt-relay"),
            ("/mnt//relay/", "mnt-relay"),
            ("/", "-"),
            ("/.hidden/x", "\\x2ehidden-x"),
            ("/a/.b", "a-.b"),
            ("/my-mount/with space", "my\\x2dmount-with\\x20space"),
        ] {
            assert_eq!(instance_name(Path::new(path)), name, "{path}");
        }
    }

    #[test]
    fn long_instance_names_are_cut_and_stay_distinct() {
        let long = |last: &str| format!("/{}/{last}", "d".repeat(250));
        let (a, b) = (instance_name(Path::new(&long("a"))), instance_name(Path::new(&long("b"))));
        assert!(a.len() <= 200 && b.len() <= 200);
        assert_ne!(a, b);
    }

    #[test]
    fn odd_path_is_quoted_for_a_shell() {
        for (path, word) in [
            ("/mnt/relay", "/mnt/relay"),
            ("/a b", "'/a b'"),
            (r"/a\x2d", r"'/a\x2d'"),
            ("/a'b", r"'/a'\''b'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn socket_is_alone_in_its_directory() {
        let mount = Path::new("/mnt/relay");
        let path = |uid, dir| socket_path(mount, uid, dir).display().to_string();
        assert_eq!(path(0, Some(Path::new("/x"))), "/run/relayfs/mnt-relay/socket");
        assert_eq!(path(5, Some(Path::new("/run/user/5"))), "/run/user/5/relayfs/mnt-relay/socket");
        assert_eq!(path(5, None), "/dev/shm/relayfs-5/.run/mnt-relay/socket");
    }
}
