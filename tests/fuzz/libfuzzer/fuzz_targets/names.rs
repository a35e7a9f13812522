//! See `relayfs_fuzz::names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relayfs_fuzz::names(data));
