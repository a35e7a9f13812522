//! HELLO, the first frame of a connection, and its reply.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType, MAGIC};

/// First request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version the producer speaks.
    pub min_version: u16,
    /// Highest version the producer speaks.
    pub max_version: u16,
    /// Feature bits the producer knows; none are defined yet.
    pub features: u64,
}

impl Body<'_> for Hello {
    const KIND: FrameType = FrameType::Hello;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        self.min_version.put(out);
        self.max_version.put(out);
        0u32.put(out);
        self.features.put(out);
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "hello", |f| {
            f.magic()?;
            let (min_version, max_version, _zero): (_, _, u32) = (f.number()?, f.number()?, f.number()?);
            Some(Hello { min_version, max_version, features: f.number()? })
        })
    }
}

/// The daemon's version, limits and features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// The version that both sides use from now on.
    pub version: u16,
    /// Largest frame the daemon takes, in bytes.
    pub frame_max: u32,
    /// Longest message the daemon takes, in bytes.
    pub message_max: u32,
    /// Number of configured CPUs.
    pub n_cpus: u32,
    /// Feature bits that both sides know; none are defined yet.
    pub features: u64,
}

impl Body<'_> for HelloReply {
    const KIND: FrameType = FrameType::Hello;
    const REPLY: bool = true;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        self.version.put(out);
        0u16.put(out);
        [self.frame_max, self.message_max, self.n_cpus].into_iter().for_each(|number| number.put(out));
        self.features.put(out);
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "hello reply", |f| {
            f.magic()?;
            let (version, _zero): (_, u16) = (f.number()?, f.number()?);
            let (frame_max, message_max, n_cpus) = (f.number()?, f.number()?, f.number()?);
            Some(HelloReply { version, frame_max, message_max, n_cpus, features: f.number()? })
        })
    }
}
