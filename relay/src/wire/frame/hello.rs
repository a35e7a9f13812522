//! HELLO, with which a connection begins, and its reply.

use super::fields::Fields;
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
        out.extend_from_slice(&self.min_version.to_le_bytes());
        out.extend_from_slice(&self.max_version.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "hello", |f| {
            f.magic()?;
            Some(Hello { min_version: f.u16()?, max_version: f.u16()?, features: (f.u32()?, f.u64()?).1 })
        })
    }
}

/// What the daemon says of itself.
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
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.frame_max.to_le_bytes());
        out.extend_from_slice(&self.message_max.to_le_bytes());
        out.extend_from_slice(&self.n_cpus.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "hello reply", |f| {
            f.magic()?;
            let version = (f.u16()?, f.u16()?).0;
            Some(HelloReply {
                version,
                frame_max: f.u32()?,
                message_max: f.u32()?,
                n_cpus: f.u32()?,
                features: f.u64()?,
            })
        })
    }
}
