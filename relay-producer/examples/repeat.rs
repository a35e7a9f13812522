//! Writes a message into channel `cpu` N times.
//! `tests/instructions.sh` counts the instructions of one write.
//!
//! `cargo run --release -p relay-producer --example repeat -- MOUNT MESSAGE N`

use std::env;
use std::error::Error;

use relay_producer::{Channel, WriteError};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [mount, message, n] = args.as_slice() else { return Err("usage: repeat MOUNT MESSAGE N".into()) };
    repeat(&Channel::open(mount, "cpu")?, message.as_bytes(), n.parse()?)?;
    Ok(())
}

/// A separate function, so that `tests/instructions.sh` finds its name.
#[inline(never)]
fn repeat(channel: &Channel, message: &[u8], n: usize) -> Result<(), WriteError> {
    (0..n).try_for_each(|_| channel.write(message))
}
