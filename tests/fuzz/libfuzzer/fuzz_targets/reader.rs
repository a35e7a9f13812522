//! See `relayfs_fuzz::reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relayfs_fuzz::reader(data));
