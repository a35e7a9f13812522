//! What is wrong with a frame, and whether the connection ends with that.

use nix::errno::Errno;
use relay::wire::frame::{FrameError, Refusal};

use crate::socket::reassembly::AssemblyError;

/// Why a frame is not obeyed.
pub(crate) enum FrameRefusal {
    /// This one is refused, others are welcome.
    Request(Refusal),
    /// The peer does not keep to the protocol: the daemon says so, and drops it.
    Connection(Refusal),
}

impl FrameRefusal {
    pub(crate) fn request(errno: Errno, text: impl ToString) -> FrameRefusal {
        FrameRefusal::Request(Refusal { errno: errno as i32, text: text.to_string() })
    }

    pub(crate) fn connection(errno: Errno, text: impl ToString) -> FrameRefusal {
        FrameRefusal::Connection(Refusal { errno: errno as i32, text: text.to_string() })
    }
}

impl From<FrameError> for FrameRefusal {
    fn from(error: FrameError) -> FrameRefusal {
        match error {
            // A newer producer may know more than we do.
            FrameError::UnknownType(_) => FrameRefusal::request(Errno::EOPNOTSUPP, error),
            FrameError::Short(_) | FrameError::Length { .. } | FrameError::Malformed(_) => {
                FrameRefusal::connection(Errno::EPROTO, error)
            }
        }
    }
}

impl From<AssemblyError> for FrameRefusal {
    fn from(error: AssemblyError) -> FrameRefusal {
        match error {
            AssemblyError::Frame(error) => error.into(),
            AssemblyError::TooLong(_) => FrameRefusal::request(Errno::EMSGSIZE, error),
            AssemblyError::NoMemory | AssemblyError::NoMemoryToWait | AssemblyError::GivenUp => {
                FrameRefusal::request(Errno::ENOBUFS, error)
            }
        }
    }
}
