//! What is said about the stream, with what to do about it.

use super::{Link, NoStream};
use crate::server::NO_JETSTREAM;

/// What to do about a stream that has no leader.
pub(super) const LEADER: &str = "are the servers up that have it? nats stream report";

impl Link {
    pub(super) fn subjects(&self) -> String {
        format!("{}.>", self.name)
    }

    pub(super) fn silent(&self) -> String {
        format!("stream '{}' does not answer; trying again ({LEADER})", self.name)
    }

    pub(super) fn unheard(&self) -> String {
        let name = &self.name;
        format!("stream '{name}' is there, and nothing takes messages for it; trying again ({LEADER})")
    }

    pub(super) fn leaderless(&self) -> String {
        format!("stream '{}' has no leader; trying again ({LEADER})", self.name)
    }

    /// Returns how messages can be longer, in the words of a trouble.
    pub(crate) fn too_long(&self) -> String {
        let (name, max) = (&self.name, self.message_max());
        let raise = if self.message_max.get() < self.requests.max_payload() {
            format!("nats stream edit {name} --max-msg-size=-1")
        } else {
            "raise max_payload in the server's configuration".to_owned()
        };
        format!("stream '{name}' takes messages of {max} bytes: {raise}")
    }

    pub(super) fn nonsense(&self, error: &serde_json::Error) -> NoStream {
        NoStream::Trouble(format!("stream '{}': the server's answer makes no sense: {error}", self.name))
    }

    pub(super) fn missing(&self) -> String {
        let name = &self.name;
        format!(
            "there is no stream '{name}': add --create, or: nats stream add {name} --subjects '{name}.>' --storage \
             file --allow-direct --defaults"
        )
    }
}

/// Returns what is said if nothing answers for JetStream.
pub(super) fn unavailable() -> String {
    format!("{NO_JETSTREAM}; trying again")
}
