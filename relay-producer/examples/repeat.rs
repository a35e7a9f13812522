//! Writes a message into a channel N times: as it is, or as a record of text into a timed channel.
//! `tests/instructions.sh` counts the instructions of one write.
//!
//! `cargo run --release -p relay-producer --example repeat -- MOUNT CHANNEL MESSAGE N`

use std::env;
use std::error::Error;

use relay_producer::{Channel, WriteError};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [mount, name, message, n] = args.as_slice() else {
        return Err("usage: repeat MOUNT CHANNEL MESSAGE N".into());
    };
    let (channel, n) = (Channel::open(mount, name)?, n.parse()?);
    if channel.is_timed() {
        text(&channel, message, n)?
    } else {
        repeat(&channel, message.as_bytes(), n)?
    }
    Ok(())
}

/// As `repeat`.
#[inline(never)]
fn text(channel: &Channel, text: &str, n: usize) -> Result<(), WriteError> {
    (0..n).try_for_each(|_| channel.text(text))
}

/// A separate function, so that `tests/instructions.sh` finds its name.
#[inline(never)]
fn repeat(channel: &Channel, message: &[u8], n: usize) -> Result<(), WriteError> {
    (0..n).try_for_each(|_| channel.write(message))
}
