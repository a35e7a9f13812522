//! See `relayfs_fuzz::writer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| relayfs_fuzz::writer(data));
