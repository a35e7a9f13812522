//! Checks that the Rust libraries open no descriptor below 3 when those are closed.
//!
//! `test-streams MASK MOUNT CHANNEL`: bit N of MASK closes descriptor N. A failure is reported on descriptor 2, if it
//! is open, and by the exit status.

use std::env;
use std::fs;
use std::os::fd::RawFd;

use audience::Reader;
use nix::unistd::close;
use relay_producer::Channel;

fn main() {
    let args: Vec<String> = env::args().collect();
    let [_, mask, mount, name] = args.as_slice() else { panic!("MASK MOUNT CHANNEL") };
    let mask: u8 = mask.parse().expect("a number");
    let closed: Vec<RawFd> = (0..=2).filter(|fd| mask & (1 << fd) != 0).collect();
    for fd in &closed {
        close(*fd).expect("a standard stream");
    }
    // Readlink on each path, because listing the directory would open a descriptor.
    let look = || {
        for fd in &closed {
            let found = fs::read_link(format!("/proc/self/fd/{fd}"));
            assert!(found.is_err(), "descriptor {fd} is {found:?}");
        }
    };
    {
        let channel = Channel::open(mount, name).expect("a channel");
        let mut reader = Reader::open(mount, name).expect("a reader");
        look();
        print(&closed);
        channel.write(b"message\n").expect("writing");
        channel.flush().expect("flushing");
        print(&closed);
        assert!(reader.wait(None).expect("waiting"));
        look();
    }
    look();
}

/// Checks that output to the closed descriptors goes nowhere.
fn print(closed: &[RawFd]) {
    for fd in closed {
        let printed = fs::write(format!("/proc/self/fd/{fd}"), "printed by the program\n");
        assert!(printed.is_err(), "what was printed on {fd} has gone somewhere");
    }
    println!("printed");
}
