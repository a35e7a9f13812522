//! Forks while a channel is open, and writes to CPU 0 from both processes.
//!
//! The parent writes "before" and "after", the child "child".
//!
//! `test-fork MOUNT` waits for the daemon's answer to each message. `test-fork MOUNT direct` writes directly. It prints
//! a line when the channel is open and waits for a line; after that it needs no daemon.
//!
//! `test-fork MOUNT batch` forks while messages of a batch wait for room. The child prints what becomes of its batch, and the
//! parent waits until all messages are written.

use std::io::stdin;
use std::process::exit;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use relay_producer::{BatchOptions, Channel, Wait};
use relayfs_tests::direct::{assert_direct, pin};

/// Messages of a batch, more than the buffer holds, and their length.
const BATCH: (u64, usize) = (100, 100);

fn main() {
    let mount = std::env::args().nth(1).expect("a mount point");
    let channel = Channel::open(mount, "cpu").expect("opening the channel");
    let how = std::env::args().nth(2);
    if how.as_deref() == Some("batch") {
        return fork_in_batch(&channel);
    }
    let is_direct = how.is_some();
    let write = |message: &[u8]| {
        channel.write_to(0, message).expect("room");
        if !is_direct {
            channel.flush().expect("an answer");
        }
    };
    if is_direct {
        assert_direct(&channel);
        pin(0);
        println!("open");
        stdin().read_line(&mut String::new()).expect("a line");
    }
    write(b"before ");
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    #[allow(unsafe_code)]
    let side = unsafe { fork() };
    match side.expect("a second process") {
        ForkResult::Child => {
            write(b"child ");
            drop(channel);
            exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the child's end");
            write(b"after");
        }
    }
}

fn fork_in_batch(channel: &Channel) {
    let mut batch = channel.batch(BatchOptions { cpu: Some(0), wait: Wait::Forever }).expect("a batch");
    for _ in 0..BATCH.0 {
        batch.push(&[b'x'; BATCH.1]).expect("a message");
    }
    batch.send().expect("room in the socket");
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let side = unsafe { fork() };
    match side.expect("a second process") {
        ForkResult::Child => {
            println!("{:?}", batch.finish());
            exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the child's end");
            assert_eq!(batch.finish().expect("an answer").written, BATCH.0);
        }
    }
}
