//! Replies without numbers: done, and refused.

use super::fields::{Fields, Number};
use super::{Body, ERROR_TEXT_MAX, FrameError, FrameType, begin, finish};

/// Returns a whole reply without a body, for `FLUSH`, `CLOSE`, `WATCH` and `CONSUME`.
pub fn done(kind: FrameType, id: u32) -> Vec<u8> {
    let mut out = Vec::new();
    begin(&mut out, kind, true, 0, id);
    finish(&mut out);
    out
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// An errno.
    pub errno: i32,
    /// Text for people: object, what failed, cause, what to do.
    pub text: String,
}

impl Body<'_> for Refusal {
    const KIND: FrameType = FrameType::Error;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        self.errno.put(out);
        let end = self.text.floor_char_boundary(ERROR_TEXT_MAX);
        out.extend_from_slice(&self.text.as_bytes()[..end]);
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "error", |f| {
            let errno = f.number()?;
            let text = f.rest();
            Some(Refusal { errno, text: String::from_utf8_lossy(text).into_owned() })
        })
    }
}
