//! Names of channels and of mount points, and what is made of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use relay::ChannelName;
use relay::layout::channel_name::{COMPONENT_LEN_MAX, COMPONENTS_MAX};
use relay::layout::paths::{instance_name, socket_path, state_dir};

/// Texts, a zero byte between them: each as a name, as a mount point, and beside the next one.
pub fn names(data: &[u8]) {
    let texts: Vec<&[u8]> = data.split(|&b| b == 0).take(16).collect();
    let names: Vec<_> = texts.iter().map(|text| channel(&String::from_utf8_lossy(text))).collect();
    for pair in names.windows(2) {
        if let [Some(a), Some(b)] = pair {
            let conflict = a.conflicts_with(b);
            assert_eq!(conflict, b.conflicts_with(a));
            assert_eq!(conflict, collide(a, b) || collide(b, a), "{a} {b}");
        }
    }
    texts.iter().for_each(|text| mount_point(text));
}

fn channel(text: &str) -> Option<ChannelName> {
    match text.parse::<ChannelName>() {
        Ok(name) => {
            assert_eq!(name.as_str(), text);
            let path = Path::new(text);
            assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            assert!(path.components().map(|part| part.as_os_str()).eq(name.components().map(OsStr::new)));
            assert!((1..=COMPONENTS_MAX).contains(&name.components().count()));
            for part in name.components() {
                assert!((1..=COMPONENT_LEN_MAX).contains(&part.len()) && !part.starts_with(['.', '-']));
                assert!(part.chars().all(|c| c.is_ascii_graphic() && !",:=*?[]'\"\\$".contains(c)));
            }
            assert_eq!(Path::new(name.dir()).join(name.base()), path);
            assert_eq!(path.file_name(), Some(OsStr::new(name.base())));
            Some(name)
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.contains(char::is_control) && shown.len() < 2000, "{shown:?}");
            None
        }
    }
}

/// Whether a file of `a`, which is its name and digits, or `a` itself as a directory in the tree of control files, is `b`, or a
/// directory on the way there.
fn collide(a: &ChannelName, b: &ChannelName) -> bool {
    let (a, b): (Vec<_>, Vec<_>) = (a.components().collect(), b.components().collect());
    if a == b || b.len() < a.len() {
        return false;
    }
    let last = a.len() - 1;
    let rest = b[last].strip_prefix(a[last]);
    a[..last] == b[..last] && rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()))
}

fn mount_point(bytes: &[u8]) {
    let path = Path::new(OsStr::from_bytes(bytes));
    let name = instance_name(path);
    assert!((1..=200).contains(&name.len()) && !name.starts_with('.'));
    assert!(name.chars().all(|c| c.is_ascii_graphic() && c != '/'), "{name}");
    let parts: Vec<&[u8]> = bytes.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
    let whole = unescape(name.as_bytes());
    // One that was cut ends with a hash. What is not cut says all.
    if whole != parts.join(&b"/"[..]) {
        let is_cut = name.len() == 200 && name.as_bytes()[183] == b'-';
        assert!(is_cut || parts.is_empty() && name == "-", "{name}");
    }
    for uid in [0, 1000] {
        assert_eq!(state_dir(path, uid).file_name(), Some(OsStr::new(&name)));
        for runtime_dir in [None, Some(Path::new("/run/user/1000"))] {
            let socket = socket_path(path, uid, runtime_dir);
            assert!(socket.ends_with(Path::new(&name).join("socket")) && socket.is_absolute());
        }
    }
}

/// What systemd-escape(1) `--unescape --path` does, but for the leading slash.
fn unescape(mut name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    while let Some((&first, rest)) = name.split_first() {
        name = rest;
        let hex = rest.strip_prefix(b"x").and_then(|rest| rest.split_at_checked(2));
        let byte =
            hex.and_then(|(hex, rest)| Some((u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?, rest)));
        match (first, byte) {
            (b'\\', Some((byte, rest))) => {
                path.push(byte);
                name = rest;
            }
            (b'-', _) => path.push(b'/'),
            _ => path.push(first),
        }
    }
    path
}
