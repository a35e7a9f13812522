//! Losses of overwrite mode are counted when they happen, not at the next read: in `stats`, and in `audience --state`
//! of a dead daemon's buffers.

use std::process::Command;

use nix::sys::signal::Signal;
use relayfs_tests::buffer::{Buffer, MIB, Shape};
use relayfs_tests::{Mount, exit_code, program, run, text};

/// Length of a message: two fit a sub-buffer.
const LEN: usize = 3000;

#[test]
fn overwritten_messages_are_counted_at_once() {
    for shape in [Shape::new(8192, 2), Shape::new(8192, 4).direct(), Shape::new(8192, 3).header(16)] {
        let b = Buffer::new(shape.over());
        let told = || (b.stat("overwritten_bytes"), b.stat("overwritten_subbufs"));
        for n_written in 1..40_usize {
            b.write("m", LEN);
            let gone = n_written.div_ceil(2).saturating_sub(shape.n);
            let expected = (gone * (2 * LEN + shape.header), gone);
            assert_eq!(told(), expected, "{shape}: {n_written} messages");
            assert_eq!(b.mount().stats("cpu")["total.overwritten_bytes"], expected.0 as u64);
        }
        // A read finds the same losses, and no more.
        let before = told();
        b.read(10);
        assert_eq!(told(), before, "{shape}");
        // The rest of the sub-buffer that the read began with is kept: it is overwritten, but not lost.
        for _ in 0..4 * shape.n {
            b.write("n", LEN);
        }
        let unread = b.size() - b.stat("read_bytes") - b.stat("overwritten_bytes");
        let mut read = b.stat("read_bytes");
        while !b.read(MIB).is_empty() {}
        read = b.stat("read_bytes") - read;
        assert_eq!(read, unread, "{shape}: what was not counted as lost could be read");
        b.audit();
    }
}

/// Single sub-buffers, and counts that never decrease, after reads, resets and skips.
#[test]
fn overwritten_counts_never_decrease() {
    for shape in [Shape::new(4096, 1), Shape::new(4096, 2), Shape::new(4096, 3).direct()] {
        let b = Buffer::new(shape.over());
        let mut last = (0, 0);
        for step in 0..120 {
            match step % 12 {
                5 => drop(b.read(100)),
                7 => b.flush(),
                9 if step % 24 == 9 => b.reset(),
                11 => drop(b.read(MIB)),
                _ => drop(b.write("m", LEN)),
            }
            let told = (b.stat("overwritten_bytes"), b.stat("overwritten_subbufs"));
            assert!(told.0 >= last.0 && told.1 >= last.1, "{shape}, step {step}: {told:?} after {last:?}");
            let known = b.stat("read_bytes") + told.0 + b.stat("discarded_bytes");
            assert!(known <= b.size(), "{shape}, step {step}: {known} of {}", b.size());
            last = told;
        }
        b.audit();
    }
}

/// `audience --state` and the next daemon count the same.
#[test]
fn overwritten_messages_of_a_dead_daemon_are_counted() {
    let args = ["--subbuf-size=4096", "--n-subbufs=2", "--overwrite"];
    let mut mount = Mount::new(&args);
    for _ in 0..10 {
        mount.send(0, &[&[b'm'; 4000]]);
    }
    let overwritten = |mount: &Mount| mount.stats("cpu")["cpu0.overwritten_bytes"];
    assert_eq!(overwritten(&mount), 8 * 4000);
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
    let state = relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw());
    let output = run(Command::new(program("audience")).arg("--state").arg(&state));
    let said = text(&output.stderr);
    assert!(said.contains("32000 bytes overwritten"), "{said}");
    mount.restart(&args);
    assert_eq!(overwritten(&mount), 8 * 4000);
    assert_eq!(mount.read("cpu0").len(), 2 * 4000);
    assert_eq!(overwritten(&mount), 8 * 4000);
    // Data that the log reports as unread can be read.
    mount.send(0, &[&[b'm'; 4000][..]; 5]);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    let said = mount.daemon().stderr();
    assert!(said.contains(" 8000 bytes ") && !said.contains(" 20000 bytes "), "{said}");
}
