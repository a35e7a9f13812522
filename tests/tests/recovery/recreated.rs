//! While `reset` recreates a broken channel of the command line, its name means the broken or the new channel, and
//! always one.

use std::fs::{self, File};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use relay::layout::state_file::{STATE_FILE, StateFile};
use relay_producer::{Channel, OpenError};
use relayfs_tests::Mount;

/// How often it is broken and recreated.
const TIMES: usize = 40;

/// Ways to use its name. Its directory belongs to it alone.
const LOOKS: [fn(&Mount) -> io::Result<()>; 7] = [
    |mount| File::open(mount.path("dir/evil0")).map(drop),
    |mount| fs::metadata(mount.path("dir/evil0")).map(drop),
    |mount| fs::read(mount.control("dir/evil", "stats")).map(drop),
    |mount| fs::metadata(mount.control("dir/evil", "snapshot/cpu0")).map(drop),
    |mount| fs::read(mount.control("dir/evil", "mode")).map(drop),
    |mount| {
        let names = fs::read_dir(mount.path("dir"))?.map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        let is_there = names.iter().any(|name| name == "evil0");
        if is_there { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    },
    |mount| match Channel::open(mount.path(".relay/socket"), "dir/evil") {
        Err(OpenError::Refused(refused)) => Err(io::Error::from_raw_os_error(refused.errno)),
        opened => opened.map(drop).map_err(io::Error::other),
    },
];

#[test]
fn name_of_recreated_channel_always_resolves() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // Large, so that it takes a while to create. There is no room for two.
    let mount = Mount::new(&[
        "--state-dir",
        state.to_str().unwrap(),
        "--subbuf-size=4K",
        "--channel=dir/evil:subbuf-size=4M:global",
        "--max-channels=2",
        "--max-memory=20M",
    ]);
    let (over, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (mount, over, seen) = (&mount, &over, &seen);
        for (number, look) in LOOKS.iter().enumerate() {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if let Err(error) = look(mount) {
                        let raw = error.raw_os_error();
                        // Only when all threads may end: otherwise a failure is a test that hangs.
                        if raw == Some(libc::ENOENT) {
                            over.store(true, Ordering::Relaxed);
                            panic!("look {number}: {error}");
                        }
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..TIMES {
            let entries = StateFile::parse(&fs::read_to_string(state.join(STATE_FILE)).unwrap()).unwrap();
            let evil = entries.channels.iter().find(|entry| entry.name.as_str() == "dir/evil").unwrap();
            let data = state.join(format!("{}.data0", evil.id));
            File::options().write(true).open(data).unwrap().set_len(0).unwrap();
            fs::write(mount.control("dir/evil", "reset"), "1").unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner() > 0);
    mount.send_to("dir/evil", 0, &[b"anew"]);
    assert_eq!(mount.read("dir/evil0"), b"anew");
}
