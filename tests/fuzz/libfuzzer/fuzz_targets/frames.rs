//! See `relayfs_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relayfs_fuzz::frames(data));
