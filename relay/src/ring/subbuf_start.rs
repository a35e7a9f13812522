//! Callback before a sub-buffer begins: the kernel's `subbuf_start`.

/// Most bytes that the callback can put at the start of a sub-buffer.
pub const START_MAX: usize = 256;

/// A sub-buffer that is about to begin. Nothing has changed yet.
#[derive(Clone, Copy, Debug)]
pub struct SubbufInfo {
    /// Unused bytes at the end of the current sub-buffer; 0 if that is finished already.
    pub padding: usize,
    /// Whether all sub-buffers are full once the current one is finished.
    pub full: bool,
    /// Reserved bytes at the start of each sub-buffer.
    pub header: usize,
}

/// First bytes of a new sub-buffer.
#[derive(Clone, Copy, Debug)]
pub struct SubbufHeader {
    /// First bytes of its header, as many as the header has room for.
    /// The rest of the header is zero.
    pub bytes: [u8; START_MAX],
}

/// The callback. `None` refuses the sub-buffer. A writer that was interrupted calls it again.
pub type SubbufStart<'a> = dyn FnMut(SubbufInfo) -> Option<SubbufHeader> + 'a;
