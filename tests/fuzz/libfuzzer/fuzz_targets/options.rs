//! See `relayfs_fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relayfs_fuzz::options(data));
