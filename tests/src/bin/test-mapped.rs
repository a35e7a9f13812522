//! Prints the finished sub-buffers of a channel from mappings: `test-mapped MOUNT CHANNEL`.

use std::error::Error;
use std::io::{Write, stdout};
use std::process::ExitCode;

use audience::Reader;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mount, channel) = args.next().zip(args.next()).ok_or("MOUNT CHANNEL")?;
    let mut reader = Reader::open(mount, &channel)?;
    for cpu in 0..reader.n_bufs() {
        let mut bytes = Vec::new();
        while let Some(sub_buffer) = reader.next_finished(cpu) {
            sub_buffer.copy_to(&mut bytes);
        }
        reader.release(cpu)?;
        stdout().write_all(&bytes)?;
    }
    Ok(())
}
