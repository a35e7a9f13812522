//! Conversion between a channel's shape in OPEN and its reply, and the types of this crate.

use crate::wire::frame::{HEADER_DEFAULT, Open, OpenReply};
use crate::{ChannelName, Geometry, GeometrySpec, Mode};

// 0 leaves the value to the daemon.
const NO_OVERWRITE: u8 = 1;
const OVERWRITE: u8 = 2;
/// Bit of `mode`: records with time stamps.
const TIMED: u8 = 0x10;
/// Bit of `mode` in OPEN: bare messages. Neither bit leaves the choice to the daemon.
const RAW: u8 = 0x20;
const PER_CPU: u8 = 1;
const GLOBAL: u8 = 2;

/// Largest size that a frame can carry, in bytes. One more leaves the value to the daemon.
const SIZE_MAX: u32 = HEADER_DEFAULT - 1;

impl<'a> Open<'a> {
    /// Creates the request for a channel of this shape.
    /// No channel has a size above what a frame can carry, so such a size is replaced by another invalid one.
    pub fn new(name: &'a ChannelName, spec: &GeometrySpec) -> Open<'a> {
        let given = |size: Option<u64>, none| size.map_or(none, |size| size.min(u64::from(SIZE_MAX)) as u32);
        Open {
            subbuf_size: given(spec.subbuf_size, 0),
            n_subbufs: given(spec.n_subbufs, 0),
            header: given(spec.header, HEADER_DEFAULT),
            mode: spec.mode.map_or(0, number_of_mode)
                | spec.timed.map_or(0, |timed| if timed { TIMED } else { RAW }),
            scope: spec.global.map_or(0, number_of_scope),
            name: name.as_str().as_bytes(),
        }
    }

    /// Returns whether `mode` and `scope` have a meaning.
    pub(super) fn is_known(mode: u8, scope: u8) -> bool {
        mode & !(TIMED | RAW) <= OVERWRITE && mode & (TIMED | RAW) != TIMED | RAW && scope <= GLOBAL
    }

    /// Returns the requested shape.
    pub fn spec(&self) -> GeometrySpec {
        let given = |size: u32, none| (size != none).then_some(u64::from(size));
        GeometrySpec {
            subbuf_size: given(self.subbuf_size, 0),
            n_subbufs: given(self.n_subbufs, 0),
            header: given(self.header, HEADER_DEFAULT),
            mode: mode_of_number(self.mode & !(TIMED | RAW)),
            global: scope_of_number(self.scope),
            timed: (self.mode & (TIMED | RAW) != 0).then_some(self.mode & TIMED != 0),
        }
    }
}

impl OpenReply {
    /// Creates the reply for a channel of this shape.
    pub fn new(channel: u32, geometry: &Geometry, n_bufs: usize, created: bool) -> OpenReply {
        OpenReply {
            channel,
            subbuf_size: geometry.subbuf_size() as u32,
            n_subbufs: geometry.n_subbufs() as u32,
            header: geometry.header() as u32,
            mode: number_of_mode(geometry.mode()) | if geometry.timed() { TIMED } else { 0 },
            scope: number_of_scope(geometry.global()),
            created: created.into(),
            n_bufs: n_bufs as u32,
        }
    }

    /// Returns the channel's geometry and number of buffers, if such a channel can exist.
    pub fn shape(&self) -> Option<(Geometry, usize)> {
        let spec = GeometrySpec {
            subbuf_size: Some(self.subbuf_size.into()),
            n_subbufs: Some(self.n_subbufs.into()),
            header: Some(self.header.into()),
            mode: Some(mode_of_number(self.mode & !TIMED)?),
            global: Some(scope_of_number(self.scope)?),
            timed: Some(self.mode & TIMED != 0),
        };
        let (geometry, n_bufs) = (spec.build().ok()?, self.n_bufs as usize);
        geometry.can_have(n_bufs).then_some((geometry, n_bufs))
    }
}

fn number_of_mode(mode: Mode) -> u8 {
    match mode {
        Mode::NoOverwrite => NO_OVERWRITE,
        Mode::Overwrite => OVERWRITE,
    }
}

fn mode_of_number(number: u8) -> Option<Mode> {
    match number {
        NO_OVERWRITE => Some(Mode::NoOverwrite),
        OVERWRITE => Some(Mode::Overwrite),
        _ => None,
    }
}

fn number_of_scope(global: bool) -> u8 {
    if global { GLOBAL } else { PER_CPU }
}

fn scope_of_number(number: u8) -> Option<bool> {
    match number {
        PER_CPU => Some(false),
        GLOBAL => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [&str; 9] = [
        "",
        "subbuf-size=4K",
        "n-subbufs=2:header=0",
        "overwrite:global",
        "header=16:no-overwrite",
        "timed",
        "raw",
        "raw:overwrite",
        "timed:overwrite:global",
    ];

    #[test]
    fn encoded_shape_is_decoded() {
        let name: ChannelName = "app/log".parse().unwrap();
        for shape in SHAPES {
            let spec: GeometrySpec = shape.parse().unwrap();
            assert_eq!(Open::new(&name, &spec).spec(), spec, "{shape}");
            let geometry = spec.build().unwrap();
            let n_bufs = if geometry.global() { 1 } else { 2 };
            let reply = OpenReply::new(7, &geometry, n_bufs, true);
            assert_eq!(reply.shape(), Some((geometry, n_bufs)), "{shape}");
            assert_eq!(GeometrySpec::from(geometry).build(), Ok(geometry), "{shape}");
        }
    }

    /// The bytes of `mode`, as `relay/docs/PROTOCOL.md` has them.
    #[test]
    fn timed_and_raw_are_bits_of_the_mode() {
        let name: ChannelName = "log".parse().unwrap();
        let mode = |shape: &str| Open::new(&name, &shape.parse().unwrap()).mode;
        assert_eq!(["", "timed", "raw", "timed:overwrite"].map(mode), [0, 0x10, 0x20, 0x12]);
        let timed = "timed".parse::<GeometrySpec>().unwrap().build().unwrap();
        assert_eq!(OpenReply::new(7, &timed, 2, true).mode, 0x11);
        for (mode, scope) in [(3, 0), (0x30, 0), (0x13, 0), (0x40, 0), (0x80, 0), (0, 3)] {
            assert!(!Open::is_known(mode, scope), "{mode:#x} {scope}");
        }
    }

    #[test]
    fn impossible_shape_is_refused() {
        let geometry = GeometrySpec::default().build().unwrap();
        let reply = OpenReply::new(7, &geometry, 2, true);
        for wrong in [
            OpenReply { subbuf_size: 0, ..reply },
            OpenReply { n_subbufs: u32::MAX, ..reply },
            OpenReply { header: reply.subbuf_size, ..reply },
            OpenReply { mode: 0, ..reply },
            OpenReply { mode: 3, ..reply },
            OpenReply { mode: 0x10, ..reply },
            OpenReply { mode: 0x21, ..reply },
            OpenReply { mode: 0x11, header: 1, ..reply },
            OpenReply { mode: 0x11, subbuf_size: 63, ..reply },
            OpenReply { scope: 0, ..reply },
            OpenReply { scope: 3, ..reply },
            OpenReply { n_bufs: 0, ..reply },
            OpenReply { scope: 2, n_bufs: 2, ..reply },
        ] {
            assert_eq!(wrong.shape(), None, "{wrong:?}");
        }
    }
}
