//! Sub-buffers that take a while to copy, so that a test can come in between.

use relay_producer::{BatchOptions, Channel};

/// Options of a daemon with such sub-buffers.
pub const ARGS: &[&str] = &["--subbuf-size=32M", "--n-subbufs=2", "--flush-interval=never"];
/// Size of a sub-buffer in bytes.
pub const SUBBUF_SIZE: usize = 32 << 20;
/// Length of a message in bytes.
pub const MESSAGE: usize = 1 << 20;

/// Fills a sub-buffer of CPU 0 with a byte.
#[track_caller]
pub fn fill(channel: &Channel, byte: u8) {
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    for _ in 0..SUBBUF_SIZE / MESSAGE {
        let counts = channel.write_batch(&[&vec![byte; MESSAGE]], options).expect("writing");
        assert_eq!(counts.written, 1);
    }
}
