//! Which room of a crate may use which, and where a type's methods stand.
//!
//! A room is a file or a folder directly below a crate's `src`. A new arrow between rooms is a decision: it gets a word in
//! this table, or what it needs moves down.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, none, sources};

/// A room, and those it may use.
type Room = (&'static str, &'static [&'static str]);

/// The crates' rooms, from the top floor down: a room uses those below it.
const CRATES: &[(&str, &[Room])] = &[
    (
        "relayfsd/src/",
        &[
            (
                "daemon",
                &["config", "fuse", "mount", "process", "registry", "socket", "state", "tree", "writers"],
            ),
            ("doctor", &["channel", "config", "mount", "process"]),
            ("fuse", &["channel", "config", "tree"]),
            ("tree", &["channel", "monitor", "policy", "registry", "writers"]),
            ("monitor", &["channel", "registry"]),
            ("socket", &["channel", "policy", "process", "registry", "state", "writers"]),
            ("registry", &["channel", "config", "policy", "state", "writers"]),
            ("writers", &["channel"]),
            ("state", &["channel", "config", "mount", "process"]),
            ("mount", &["config"]),
            ("channel", &["policy", "process"]),
            ("process", &["config"]),
            ("config", &["policy"]),
            ("policy", &[]),
        ],
    ),
    (
        "relay/src/",
        &[
            ("wire", &["cli", "layout", "system"]),
            ("trace", &["clock", "layout"]),
            ("ring", &["clock", "layout", "memory"]),
            ("layout", &["cli", "clock", "memory", "ring"]),
            ("memory", &["layout", "ring"]),
            ("clock", &[]),
            ("system", &[]),
            ("cli", &[]),
        ],
    ),
    (
        "relay-producer/src/",
        &[
            ("tracing", &["builder", "channel", "error", "event", "frontend", "levels", "socket"]),
            ("log", &["builder", "channel", "frontend", "levels", "socket"]),
            ("panic", &["builder", "frontend"]),
            ("frontend", &["builder", "channel", "error", "event", "levels", "socket"]),
            ("builder", &["channel", "error", "levels", "socket", "transport"]),
            (
                "channel",
                &[
                    "batch",
                    "builder",
                    "direct",
                    "error",
                    "event",
                    "options",
                    "record",
                    "route",
                    "socket",
                    "transport",
                ],
            ),
            ("event", &["definitions", "direct", "error", "options", "record", "route", "socket"]),
            ("route", &["definitions", "direct", "error", "levels", "socket"]),
            ("batch", &["direct", "error", "options", "socket"]),
            ("socket", &["definitions", "direct", "error", "first_thread", "levels", "transport"]),
            ("direct", &["definitions", "first_thread", "levels", "record"]),
            ("first_thread", &[]),
            ("levels", &[]),
            ("definitions", &[]),
            ("record", &[]),
            ("error", &["options"]),
            ("options", &[]),
            ("transport", &[]),
        ],
    ),
    (
        "audience/forward/src/",
        &[
            ("send", &["error", "message", "options", "output", "server"]),
            ("read", &["error", "message", "options", "output", "server"]),
            ("server", &["error", "options"]),
            ("message", &[]),
            ("options", &[]),
            ("output", &[]),
            ("error", &[]),
        ],
    ),
    (
        "audience/common/src/",
        &[
            ("print", &["error", "filter", "options", "output"]),
            ("filter", &["error", "options"]),
            ("trace_dir", &["error"]),
            ("output", &["error"]),
            ("signals", &["error"]),
            ("options", &[]),
            ("note", &[]),
            ("error", &[]),
        ],
    ),
    (
        "audience/src/bin/audience/",
        &[
            ("top", &["channel_files", "error", "monitor", "options", "panic_point"]),
            (
                "status",
                &["channel_files", "error", "monitor", "mount", "options", "output", "wait_for_channel"],
            ),
            (
                "report",
                &[
                    "channel_files",
                    "convert",
                    "error",
                    "losses",
                    "monitor",
                    "mount",
                    "options",
                    "output",
                    "timed",
                    "unread",
                ],
            ),
            ("monitor", &["error", "mount"]),
            ("watch", &["channel_files", "error", "mount", "options", "output", "timed", "wait_for_channel"]),
            ("convert", &["error", "options", "output"]),
            (
                "record",
                &[
                    "amount",
                    "channel_files",
                    "error",
                    "losses",
                    "mount",
                    "options",
                    "output",
                    "read_buffer",
                    "timed",
                    "unread",
                    "wait_for_channel",
                ],
            ),
            (
                "follow",
                &[
                    "channel_files",
                    "error",
                    "losses",
                    "mount",
                    "options",
                    "output",
                    "timed",
                    "wait_for_channel",
                ],
            ),
            (
                "drain",
                &[
                    "channel_files",
                    "error",
                    "losses",
                    "mount",
                    "options",
                    "output",
                    "post_mortem",
                    "timed",
                    "unread",
                ],
            ),
            ("exec", &["mount"]),
            ("post_mortem", &["error", "losses", "options", "output", "timed"]),
            (
                "timed",
                &["channel_files", "error", "losses", "options", "output", "unread", "wait_for_channel"],
            ),
            ("wait_for_channel", &["channel_files", "error", "mount"]),
            ("unread", &["amount", "channel_files", "losses"]),
            ("mount", &["error", "output"]),
            ("losses", &["output"]),
            ("output", &["channel_files", "error", "read_buffer"]),
            ("read_buffer", &["channel_files", "error"]),
            ("options", &["channel_files"]),
            ("channel_files", &["error"]),
            ("error", &[]),
            ("amount", &[]),
            ("panic_point", &[]),
        ],
    ),
];
/// Arrows that climb, and close a circle: none is to be added.
const CLIMBING: &[(&str, &str)] = &[
    ("layout", "ring"),     // the files of a channel are mapped as buffers
    ("memory", "layout"),   // a mapping hands out the words of the format
    ("memory", "ring"),     // the model of the scheduler, for loom alone
    ("channel", "builder"), // the usual pair
];
/// Files with methods of types that stand elsewhere.
const METHODS_ELSEWHERE: &[&str] = &[
    "relay/src/clock/source.rs",     // to take an anchor is to read clocks
    "relay/src/wire/frame/shape.rs", // what OPEN and its reply have in common
];

/// The room of a file, if it is one of this crate's and no root.
fn room_of<'a>(source: &'a Source, src: &str) -> Option<&'a str> {
    let path = source.path.strip_prefix(src).filter(|_| source.is_rust() && !source.is_test())?;
    let room = path.split('/').next()?;
    let room = room.strip_suffix(".rs").unwrap_or(room);
    (!["main", "lib", "bin"].contains(&room)).then_some(room)
}

/// The code of a file without its tests, its comments left out.
fn code_of(source: &Source) -> String {
    let lines: Vec<&str> = source.code().map(|(_, code)| code).collect();
    let code = lines.join("\n");
    code.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

#[test]
fn rooms_use_what_the_table_says() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (src, table) in CRATES {
        let files: Vec<_> =
            sources.iter().filter_map(|source| Some((room_of(source, src)?, source))).collect();
        let rooms: BTreeSet<&str> = files.iter().map(|(room, _)| *room).collect();
        let mut arrows: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for (room, source) in &files {
            let code = code_of(source);
            for rest in code.split("crate::").skip(1) {
                let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                if let Some(used) = rooms.get(name).filter(|used| *used != room) {
                    arrows.insert((room, used), &source.path);
                }
            }
        }
        let allowed: BTreeSet<(&str, &str)> =
            table.iter().flat_map(|(room, used)| used.iter().map(|used| (*room, *used))).collect();
        let listed: BTreeSet<&str> = table.iter().map(|(room, _)| *room).collect();
        let new = arrows.iter().filter(|(arrow, _)| !allowed.contains(*arrow));
        wrong.extend(new.map(|((room, used), path)| format!("{path}: {room} uses {used}")));
        let gone = allowed.iter().filter(|arrow| !arrows.contains_key(*arrow));
        wrong.extend(gone.map(|(room, used)| format!("{src}: {room} does not use {used}: out of the table")));
        wrong.extend(rooms.symmetric_difference(&listed).map(|room| format!("{src}: {room}")));
    }
    none("rooms and the table differ", wrong);
}

#[test]
fn arrows_between_rooms_lead_down() {
    let mut climbing = Vec::new();
    for (_, table) in CRATES {
        for (floor, (room, used)) in table.iter().enumerate() {
            let above = |name: &&&str| table[..floor].iter().any(|(above, _)| above == *name);
            climbing.extend(used.iter().filter(above).map(|used| (*room, *used)));
        }
    }
    assert_eq!(climbing, CLIMBING);
}

/// The type of an `impl` that is no trait's, from what follows that word.
fn type_of_impl(rest: &str) -> Option<&str> {
    let head = rest.split('{').next()?;
    let mut depth = 0;
    let parameters = head.char_indices().find(|(at, c)| {
        let is_arrow = head[..*at].ends_with('-');
        depth += i32::from(*c == '<') - i32::from(*c == '>' && !is_arrow);
        depth == 0
    });
    let of = head[parameters.map_or(0, |(at, c)| at + c.len_utf8())..].trim_start();
    let name = of.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (!of.contains(" for ") && !of.contains("\nfor ")).then_some(name)
}

#[test]
fn methods_stand_in_their_types_file_or_below_it() {
    let sources = sources();
    let mut wrong = Vec::new();
    for src in [
        "relayfsd/src/",
        "relay/src/",
        "relay-producer/src/",
        "audience/src/",
        "audience/common/src/",
        "audience/forward/src/",
    ] {
        let files: Vec<(&Source, String)> = sources
            .iter()
            .filter(|source| source.is_rust() && !source.is_test() && source.path.starts_with(src))
            .map(|source| (source, code_of(source)))
            .collect();
        let mut defined: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (source, code) in &files {
            for word in ["struct ", "enum "] {
                let lines = code.lines().filter_map(|line| line.trim_start().split_once(word));
                let names = lines.filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
                for (_, rest) in names {
                    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                    defined.entry(name.unwrap_or_default()).or_default().push(&source.path);
                }
            }
        }
        for (source, code) in &files {
            for name in code.split("\nimpl").skip(1).filter_map(type_of_impl) {
                let Some(homes) = defined.get(name) else { continue };
                let is_home = |home: &&str| {
                    let below =
                        home.trim_end_matches(".rs").trim_end_matches("/lib").trim_end_matches("/main");
                    source.path == **home || source.path.starts_with(&format!("{below}/"))
                };
                if !homes.iter().any(is_home) && !METHODS_ELSEWHERE.contains(&source.path.as_str()) {
                    wrong.push(format!("{}: impl {name}, of {}", source.path, homes.join(", ")));
                }
            }
        }
        assert!(defined.len() > 5, "only {} types found below {src}", defined.len());
    }
    none("methods outside their type's file", wrong);
}
