//! The words of `-o` that are not long options: those of mount(8), of fstab, and of FUSE.

use nix::mount::MsFlags;

/// The collected words of `-o` that are not long options of relayfsd.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words {
    /// Flags for mount(2).
    pub(crate) flags: MsFlags,
    pub(crate) allow_other: bool,
    pub(crate) auto_unmount: bool,
    /// Source shown in /proc/mounts.
    pub(crate) fsname: Option<String>,
    /// Owner of the files.
    pub(crate) uid: Option<u32>,
    /// Group of the files.
    pub(crate) gid: Option<u32>,
    /// Permission bits of the data files.
    pub(crate) mode: Option<u32>,
    /// SELinux's words for mount(2), unchanged.
    pub(crate) contexts: Vec<String>,
}

impl Default for Words {
    fn default() -> Words {
        Words {
            // A relay tree has neither devices nor set-uid programs, so `dev` and `suid` have no effect.
            // (mount.fuse3 adds these two when root mounts.)
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            allow_other: false,
            auto_unmount: false,
            fsname: None,
            uid: None,
            gid: None,
            mode: None,
            contexts: Vec::new(),
        }
    }
}

impl Words {
    /// Takes a word that is not a long option. `false`: the word is unknown here.
    pub(crate) fn take(&mut self, key: &str, value: Option<&str>) -> Result<bool, String> {
        let number = |value: &str| value.parse::<u32>().map_err(|_| format!("'{value}' is not a number"));
        let name = key.replace('-', "_");
        match (name.as_str(), value) {
            // Words for mount(8), systemd and people, without a meaning for the daemon. `group` without a value is
            // mount's, with a value it is the daemon's option. Messages go to memory, so `sync` has no effect, and the
            // tree has no atimes.
            ("defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "owner" | "users" | "nousers", None) => {
            }
            ("group" | "nouser" | "nogroup" | "noowner", None) | ("user", _) | ("comment", Some(_)) => {}
            ("dev" | "nodev" | "suid" | "nosuid" | "async" | "sync" | "dirsync", None) => {}
            ("diratime" | "nodiratime" | "relatime" | "norelatime" | "strictatime", None) => {}
            ("lazytime" | "nolazytime", None) => {}
            ("default_permissions", None) => {} // always
            _ if name.starts_with("x_") || name.starts_with("X_") => {}
            ("rw", None) => self.flags.remove(MsFlags::MS_RDONLY),
            ("ro", None) => self.flags.insert(MsFlags::MS_RDONLY),
            ("exec", None) => self.flags.remove(MsFlags::MS_NOEXEC),
            ("noexec", None) => self.flags.insert(MsFlags::MS_NOEXEC),
            ("atime", None) => self.flags.remove(MsFlags::MS_NOATIME),
            ("noatime", None) => self.flags.insert(MsFlags::MS_NOATIME),
            ("allow_other", None) => self.allow_other = true,
            ("allow_root", None) => {
                return Err("not supported; use allow_other: the modes of the files keep others out".into());
            }
            ("auto_unmount", None) => self.auto_unmount = true,
            ("fsname", Some(name)) => self.fsname = Some(name.to_owned()),
            ("subtype", Some("relayfsd")) => {}
            ("subtype", Some(_)) => return Err("the type is always fuse.relayfsd".into()),
            ("uid", Some(value)) => self.uid = Some(number(value)?),
            ("gid", Some(value)) => self.gid = Some(number(value)?),
            ("mode", Some(value)) => self.mode = Some(parse_mode(value)?),
            ("context" | "fscontext" | "defcontext" | "rootcontext", Some(value)) => {
                self.contexts.push(format!("{name}={value}"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Splits a list for `-o` at commas, except commas between double quotes.
///
/// A context of SELinux may have such commas.
pub(crate) fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let divides = move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    list.split(divides).filter(|word| !word.is_empty())
}

/// Reads permission bits, `0660`, `660` or `0o660`.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    // from_str_radix would accept a sign.
    let octal = digits.bytes().all(|b| b.is_ascii_digit());
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(format!("'{text}' is not a mode: octal, 0 to 0777")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_words_are_taken() {
        let mut words = Words::default();
        for (key, value) in
            [("ro", None), ("allow-other", None), ("x-systemd.requires", Some("a=b")), ("gid", Some("3"))]
        {
            assert_eq!(words.take(key, value), Ok(true), "{key}");
        }
        assert!(words.flags.contains(MsFlags::MS_RDONLY) && words.allow_other && words.gid == Some(3));
        for (key, value) in [("rw", Some("1")), ("fsname", None), ("group", Some("adm")), ("bind", None)] {
            assert_eq!(words.take(key, value), Ok(false), "{key}");
        }
    }

    #[test]
    fn contexts_of_selinux_are_kept_unchanged() {
        let list = "ro,context=\"system_u:object_r:tmp_t:s0:c127,c456\",,uid=5,fscontext=a:b:c";
        let found: Vec<&str> = split(list).collect();
        assert_eq!(
            found,
            ["ro", "context=\"system_u:object_r:tmp_t:s0:c127,c456\"", "uid=5", "fscontext=a:b:c"]
        );
        let mut words = Words::default();
        for word in found {
            let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
            assert_eq!(words.take(key, value), Ok(true));
        }
        assert_eq!(words.contexts, [split(list).nth(1).unwrap(), "fscontext=a:b:c"]);
        assert_eq!(Words::default().take("context", None), Ok(false));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0666"), Ok(0o666));
        assert_eq!(parse_mode("0o660"), Ok(0o660));
        for bad in ["", "8", "+7", "rw", "1777"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }
}
