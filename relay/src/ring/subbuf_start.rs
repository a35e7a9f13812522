//! Being asked before a sub-buffer is begun, as the kernel's clients are by `subbuf_start`.

/// Most bytes that whoever is asked puts at the start of a sub-buffer.
pub const START_MAX: usize = 256;

/// A sub-buffer that is about to be begun. Nothing has changed yet.
#[derive(Clone, Copy, Debug)]
pub struct SubbufInfo {
    /// What would be lost at the end of the current sub-buffer, in bytes; 0 if that is finished already.
    pub padding: usize,
    /// Whether, with the current sub-buffer finished, all are full.
    pub full: bool,
    /// Reserved bytes at the start of each sub-buffer.
    pub header: usize,
}

/// What a sub-buffer begins with.
#[derive(Clone, Copy, Debug)]
pub struct SubbufHeader {
    /// The first bytes of its header, as far as that goes; what is left of the header is zero.
    pub bytes: [u8; START_MAX],
}

/// Who is asked: `None` refuses. It may be asked again, if something came in between.
pub type SubbufStart<'a> = dyn FnMut(SubbufInfo) -> Option<SubbufHeader> + 'a;
