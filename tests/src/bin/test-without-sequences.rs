//! Runs a command without restartable sequences, for `tests/run.sh`.
//!
//! `test-without-sequences COMMAND [ARGUMENT...]`

use std::os::unix::process::CommandExt;
use std::process::Command;

use relayfs_tests::refused::without_sequences;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().expect("a command");
    let error = without_sequences(Command::new(&program).args(args)).exec();
    panic!("running {}: {error}", program.display());
}
