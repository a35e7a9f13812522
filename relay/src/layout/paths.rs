//! Where a mount's socket and state directory are, from its mount point alone.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Name of the symbolic link to the socket, relative to the mount point.
pub const SOCKET_LINK: &str = ".relay/socket";
/// Mount point where none is named.
const MOUNT_DEFAULT: &str = "/mnt/relay";
/// Environment variable that names the mount point or the socket for programs that are not told.
pub const MOUNT_ENV: &str = "RELAYFS";

/// The mount point, or the socket, for who was not told one: what the environment names, unless that is empty, or the default.
pub fn mount_by_environment() -> PathBuf {
    let named = std::env::var_os(MOUNT_ENV).filter(|path| !path.is_empty());
    named.map_or_else(|| MOUNT_DEFAULT.into(), PathBuf::from)
}

/// A mount point's name as systemd-escape(1) `--path` writes it: `/mnt/relay` gives `mnt-relay`. Names longer
/// than a file name may be are cut and told apart by a hash of the whole.
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
        name.push('-'); // the root directory, as systemd has it
    }
    if name.len() > LEN_MAX {
        name.truncate(LEN_MAX - 17);
        name.push_str(&format!("-{:016x}", fnv1a(bytes)));
    }
    name
}

/// Where the state directories of users are, each user's in one called [`state_dirs_name`].
pub const STATE_BASE: &str = "/dev/shm";

/// Name of the directory that has a user's state directories: `relayfs-UID`.
pub fn state_dirs_name(uid: u32) -> String {
    format!("relayfs-{uid}")
}

/// The state directory of a mount: `/dev/shm/relayfs-UID/NAME`.
pub fn state_dir(mount_point: &Path, uid: u32) -> PathBuf {
    Path::new(STATE_BASE).join(state_dirs_name(uid)).join(instance_name(mount_point))
}

/// Returns a path as a word of a command that people may copy into bash, zsh or ksh, on one line.
pub fn shell_word(path: &Path) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%=,".contains(c);
    match path.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(is_plain) => text.to_owned(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => format!("$'{}'", path.as_os_str().as_bytes().escape_ascii()),
    }
}

/// The socket of a mount, alone in its directory: `/run/relayfs/NAME/socket` for root, below `runtime_dir`
/// (`$XDG_RUNTIME_DIR`) for a user, and in the user's own directory on /dev/shm where that is not set.
pub fn socket_path(mount_point: &Path, uid: u32, runtime_dir: Option<&Path>) -> PathBuf {
    let base = match runtime_dir {
        _ if uid == 0 => PathBuf::from("/run/relayfs"),
        Some(dir) => dir.join("relayfs"),
        // An instance name never starts with a dot, so this is none.
        None => Path::new(STATE_BASE).join(state_dirs_name(uid)).join(".run"),
    };
    base.join(instance_name(mount_point)).join("socket")
}

/// FNV-1a, 64 bit: stable over releases, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values printed by `systemd-escape --path`.
    #[test]
    fn instance_names_are_those_of_systemd_escape() {
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
    fn long_names_stay_file_names_and_differ() {
        let long = |last: &str| format!("/{}/{last}", "d".repeat(250));
        let (a, b) = (instance_name(Path::new(&long("a"))), instance_name(Path::new(&long("b"))));
        assert!(a.len() <= 200 && b.len() <= 200);
        assert_ne!(a, b);
    }

    #[test]
    fn odd_paths_are_quoted_for_a_shell() {
        for (path, word) in [
            ("/mnt/relay", "/mnt/relay"),
            ("/a b", "'/a b'"),
            (r"/a\x2d", r"'/a\x2d'"),
            ("/a'b", r"'/a'\''b'"),
            ("", "''"),
            ("/a\nb'\u{1b}[0m", r"$'/a\nb\'\x1b[0m'"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn sockets_stand_alone_in_their_directory() {
        let mount = Path::new("/mnt/relay");
        let path = |uid, dir| socket_path(mount, uid, dir).display().to_string();
        assert_eq!(path(0, Some(Path::new("/x"))), "/run/relayfs/mnt-relay/socket");
        assert_eq!(path(5, Some(Path::new("/run/user/5"))), "/run/user/5/relayfs/mnt-relay/socket");
        assert_eq!(path(5, None), "/dev/shm/relayfs-5/.run/mnt-relay/socket");
    }
}
