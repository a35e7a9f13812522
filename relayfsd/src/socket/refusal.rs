//! What is wrong with a frame, and whether the connection ends with that.

use nix::errno::Errno;
use relay::wire::frame::{FrameError, Refusal};

use crate::socket::reassembly::AssemblyError;

/// Why a frame is not obeyed.
pub(crate) enum Refused {
    /// This one is refused, others are welcome.
    Request(Refusal),
    /// The peer does not keep to the protocol: it is told so, and dropped.
    Connection(Refusal),
}

impl Refused {
    pub(crate) fn request(errno: Errno, text: impl ToString) -> Refused {
        Refused::Request(Refusal { errno: errno as i32, text: text.to_string() })
    }

    pub(crate) fn connection(errno: Errno, text: impl ToString) -> Refused {
        Refused::Connection(Refusal { errno: errno as i32, text: text.to_string() })
    }
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Refused {
        match error {
            // A newer producer may know more than we do.
            FrameError::UnknownType(_) => Refused::request(Errno::EOPNOTSUPP, error),
            FrameError::Short(_) | FrameError::Length { .. } | FrameError::Malformed(_) => {
                Refused::connection(Errno::EPROTO, error)
            }
        }
    }
}

impl From<AssemblyError> for Refused {
    fn from(error: AssemblyError) -> Refused {
        match error {
            AssemblyError::Frame(error) => error.into(),
            AssemblyError::TooLong(_) => Refused::request(Errno::EMSGSIZE, error),
            AssemblyError::NoMemory | AssemblyError::NoMemoryToWait | AssemblyError::GivenUp => {
                Refused::request(Errno::ENOBUFS, error)
            }
        }
    }
}
