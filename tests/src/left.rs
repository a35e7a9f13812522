//! Reads the buffers that a killed daemon has left, without a daemon.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use relay::GeometrySpec;
use relay::layout::abi;
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;

/// Reads and consumes the unread bytes of each buffer of channel number `id`.
///
/// The channel has this geometry.
#[track_caller]
pub fn unread(state_dir: &Path, id: u32, geometry: &str, n_bufs: usize) -> Vec<Vec<u8>> {
    let geometry = geometry.parse::<GeometrySpec>().expect("a geometry").build().expect("a geometry");
    let map = |name: String, len: u64| {
        let path = state_dir.join(name);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Arc::new(Mapping::new(&file, len).expect("mapping what a daemon has left"))
    };
    let header = abi::control_header(&geometry, n_bufs);
    let control = map(format!("{id}.control"), header.control_len());
    let read = |index: usize| {
        let data = map(format!("{id}.data{index}"), abi::data_len(&geometry));
        let buffer = Buffer::new(control.clone(), data, geometry, &header, index).expect("a buffer");
        let mut reader = Reader::new(buffer);
        let (mut scratch, mut bytes) = (Vec::new(), Vec::new());
        let mut before = None;
        while before != Some(bytes.len()) {
            before = Some(bytes.len());
            reader.read(1 << 20, &mut scratch, |some| assert!(some.copy_to(&mut bytes)));
        }
        bytes
    };
    (0..n_bufs).map(read).collect()
}
