//! What becomes of the connection, in the words of the client library, and what only the operator can change.

use async_nats::{ClientError, ConnectErrorKind, Event, Server, ServerError};

/// What to do about a server that does not know us.
const SECRET: &str =
    "check --user-file, --token-file or --creds, or the variables NATS_USER, NATS_PASSWORD and NATS_TOKEN";
/// What to do about a server that we do not trust.
const AUTHORITY: &str = "check --tls-ca, and the names in the server's certificate";
/// What to do about a server that does not trust us.
const CERTIFICATE: &str = "check --tls-cert and --tls-key, and the authority that the server knows";
/// What to do about TLS that cannot begin.
const TLS: &str = "check the URL, and the certificates of the system";
/// What to do about a right that is missing.
const RIGHT: &str = "give this user that right in the server's configuration";

/// What becomes of the connection.
#[derive(Debug)]
pub(crate) enum Change {
    /// There is one.
    Made,
    /// It was lost.
    Lost,
    /// There is none.
    Missing(Trouble),
    /// A server refuses something.
    Refused(Trouble),
}

/// What is wrong with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Why.
    pub(crate) why: String,
    /// What the operator can do, if waiting does not change it. Before the first connection only, and for missing
    /// rights.
    pub(crate) advice: Option<&'static str>,
    /// Subject that this user may not publish to.
    pub(crate) subject: Option<String>,
}

impl Change {
    /// Takes a word of the client. `None`: it says nothing, or nothing that the servers' last errors do not say.
    pub(super) fn of(event: Event) -> Option<Change> {
        Some(match event {
            Event::Connected => Change::Made,
            Event::Disconnected => Change::Lost,
            // The servers' last errors say it better. A name that is not found is no server's error.
            Event::ClientError(ClientError::Other(why)) if why == ConnectErrorKind::Dns.to_string() => {
                Change::Missing(Trouble { why, advice: None, subject: None })
            }
            Event::ServerError(error) => {
                let right = match &error {
                    ServerError::Other(why) if is_about_rights(why) => Some(why),
                    _ => None,
                };
                let subject = right.and_then(|why| published_to(why)).map(str::to_owned);
                Change::Refused(Trouble { why: error.to_string(), advice: right.map(|_| RIGHT), subject })
            }
            _ => return None,
        })
    }

    /// Puts the servers' last errors into one. `None`: there are none.
    pub(super) fn of_servers(servers: &[Server]) -> Option<Change> {
        let errors = || servers.iter().filter_map(|server| server.last_error.as_deref());
        // Those that a server names may be out of reach for ever.
        let mut named = servers.iter().filter(|server| !server.is_discovered);
        let is_first = servers.iter().all(|server| !server.did_connect);
        let is_final =
            is_first && named.all(|server| server.last_error.as_deref().and_then(advice).is_some());
        let advice = errors().find_map(advice).filter(|_| is_final);
        trouble(errors()).map(|why| Change::Missing(Trouble { why, advice, subject: None }))
    }
}

/// Whether a server says that we lack a right.
fn is_about_rights(why: &str) -> bool {
    why.to_lowercase().starts_with("permissions violation")
}

/// Returns the subject that a server says we may not publish to.
fn published_to(why: &str) -> Option<&str> {
    Some(why.split_once(" for Publish to \"")?.1.rsplit_once('"')?.0)
}

/// Returns what to do about a server's last error, if waiting does not change it.
fn advice(error: &str) -> Option<&'static str> {
    let is = |kind: ConnectErrorKind| error.starts_with(&kind.to_string());
    if is(ConnectErrorKind::AuthorizationViolation) || is(ConnectErrorKind::Authentication) {
        return Some(SECRET);
    }
    if is(ConnectErrorKind::Tls) {
        return Some(TLS);
    }
    let cause = error.strip_prefix(&format!("{}: ", ConnectErrorKind::Io))?;
    if let Some(why) = cause.strip_prefix("invalid peer certificate: ") {
        // Not those of time: clocks are set, and certificates renewed, by programs.
        let is_wrong = ["UnknownIssuer", "certificate not valid for name", "NotValidForName"];
        return is_wrong.iter().any(|wrong| why.starts_with(wrong)).then_some(AUTHORITY);
    }
    let alert = cause.strip_prefix("received fatal alert: ")?;
    ["BadCertificate", "CertificateRequired", "UnknownCA"].contains(&alert).then_some(CERTIFICATE)
}

/// Puts errors into one line.
fn trouble<'e>(errors: impl Iterator<Item = &'e str>) -> Option<String> {
    let refused = ConnectErrorKind::AuthorizationViolation.to_string();
    let mut all: Vec<&str> = Vec::new();
    for error in errors {
        // The server's word for it is the same again.
        let error = if error.starts_with(&refused) { &error[..refused.len()] } else { error };
        // How long ago a certificate has expired differs each time.
        let error = error.split(": verification time ").next().unwrap_or(error);
        if !all.contains(&error) {
            all.push(error);
        }
    }
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "authorization violation: nats: authorization violation";
    const AWAY: &str = "IO error: Connection refused";

    fn server(error: Option<&str>) -> Server {
        Server {
            addr: "nats://a".parse().unwrap(),
            failed_attempts: 0,
            did_connect: false,
            is_discovered: false,
            last_error: error.map(str::to_owned),
        }
    }

    fn of_servers(servers: &[Server]) -> Option<Trouble> {
        match Change::of_servers(servers) {
            Some(Change::Missing(trouble)) => Some(trouble),
            None => None,
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_cause_is_in_a_trouble_once() {
        let said = |errors: &[&str]| {
            let servers: Vec<Server> = errors.iter().map(|error| server(Some(error))).collect();
            of_servers(&servers).map(|trouble| trouble.why)
        };
        assert_eq!(said(&[]), None);
        assert_eq!(
            said(&[AWAY, REFUSED, AWAY]).unwrap(),
            "IO error: Connection refused; authorization violation"
        );
        let expired = |ago: &str| {
            format!("IO error: invalid peer certificate: certificate expired: verification time {ago}")
        };
        assert_eq!(
            said(&[&expired("9 (UNIX), but 3 (6 seconds ago)"), &expired("8 (UNIX), but 3 (5 seconds ago)")])
                .unwrap(),
            "IO error: invalid peer certificate: certificate expired"
        );
        let event = |why: &str| Change::of(Event::ClientError(ClientError::Other(why.to_owned())));
        assert!(event("IO error").is_none() && event("DNS error").is_some());
    }

    /// Another server, or a server that was there before, may be right later.
    #[test]
    fn first_refusal_of_all_servers_is_final() {
        let [refused, away, silent] = [Some(REFUSED), Some(AWAY), None].map(server);
        let found = Server { is_discovered: true, ..away.clone() };
        let before = Server { did_connect: true, ..refused.clone() };
        for (servers, is_final) in [
            (vec![refused.clone(), refused.clone()], true),
            (vec![found, refused.clone()], true),
            (vec![away, refused.clone()], false),
            (vec![silent, refused.clone()], false),
            (vec![before, refused], false),
        ] {
            assert_eq!(of_servers(&servers).unwrap().advice.is_some(), is_final, "{servers:?}");
        }
    }

    #[test]
    fn only_what_the_operator_can_change_is_final() {
        for (error, is_final) in [
            (REFUSED, true),
            ("failed signing nonce", true),
            ("TLS error: could not load platform certs", true),
            ("IO error: invalid peer certificate: UnknownIssuer", true),
            ("IO error: invalid peer certificate: certificate not valid for name \"a\"; certificate", true),
            ("IO error: invalid peer certificate: certificate not valid yet: verification time 1", false),
            ("IO error: invalid peer certificate: certificate expired: verification time 1", false),
            ("IO error: received fatal alert: CertificateRequired", true),
            ("IO error: received fatal alert: InternalError", false),
            ("IO error: Connection refused (os error 111)", false),
            ("timed out", false),
        ] {
            assert_eq!(advice(error).is_some(), is_final, "{error}");
        }
        let refused = |why: &str| match Change::of(Event::ServerError(ServerError::Other(why.to_owned()))) {
            Some(Change::Refused(trouble)) => trouble,
            other => panic!("{other:?}"),
        };
        let refusal = |why: &str| refused(why).advice.is_some();
        let subject = |why: &str| refused(why).subject;
        assert_eq!(
            subject("Permissions Violation for Publish to \"relay.h.a.cpu0\"").unwrap(),
            "relay.h.a.cpu0"
        );
        assert_eq!(subject("Permissions Violation for Subscription to \"_INBOX.x.*\""), None);
        assert!(refusal("Permissions Violation for Publish to \"$JS.API.STREAM.INFO.relay\""));
        assert!(!refusal("maximum connections exceeded"));
    }
}
