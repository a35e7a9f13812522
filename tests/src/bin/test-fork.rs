//! Forks while a channel is open, and writes to CPU 0 from both processes: "before" and "after" from the parent,
//! "child" from the child.
//!
//! `test-fork MOUNT`

use std::process::exit;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use relay_producer::Channel;

fn main() {
    let mount = std::env::args().nth(1).expect("a mount point");
    let channel = Channel::open(mount, "cpu").expect("opening the channel");
    channel.write_to(0, b"before ").expect("room");
    channel.flush().expect("an answer");
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    #[allow(unsafe_code)]
    let side = unsafe { fork() };
    match side.expect("a second process") {
        ForkResult::Child => {
            channel.write_to(0, b"child ").expect("a connection of its own");
            channel.flush().expect("an answer of its own");
            drop(channel);
            exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the child's end");
            channel.write_to(0, b"after").expect("the connection is as it was");
            channel.flush().expect("an answer");
        }
    }
}
