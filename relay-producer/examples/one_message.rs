//! Writes its arguments as messages of channel `cpu`. `tests/instructions.sh` counts the instructions of one.
//!
//! `cargo run --release -p relay-producer --example one_message -- MOUNT MESSAGE...`

use std::env;
use std::error::Error;
use std::os::unix::ffi::OsStrExt;

use relay_producer::{Channel, WriteError};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1);
    let channel = Channel::open(args.next().ok_or("usage: one_message MOUNT MESSAGE...")?, "cpu")?;
    for message in args {
        one_message(&channel, message.as_bytes())?;
    }
    Ok(())
}

/// A function of its own, so that it can be found.
#[inline(never)]
fn one_message(channel: &Channel, message: &[u8]) -> Result<(), WriteError> {
    channel.write(message)
}
