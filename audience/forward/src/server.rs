//! The connection to the server: addresses, TLS, and how this process proves what it is.
//!
//! The client connects by itself, and again after each loss, with pauses that grow.
//!
//! A server says before TLS begins which other servers its cluster has. So whatever is between here and there can say
//! it, too. With TLS, only servers that the caller named are connected to.
//!
//! ```text
//! change.rs     what becomes of it, and what only the operator can change
//! requests.rs   requests, and their answers
//! tls.rs        files of TLS
//! ```

mod change;
pub(crate) mod requests;
mod tls;

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, ServerAddr};

pub(crate) use self::change::{Change, Trouble};
use self::tls::with_tls;
use crate::error::Failure;
use crate::options::{ALL_HOSTS, Server, Servers};

/// What is said if the server knows no JetStream.
pub(crate) const NO_JETSTREAM: &str =
    "no answer from JetStream (is it enabled on the server? nats-server -js)";
/// First pause before a server is tried again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a server is tried again.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest time for a connection to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Time between two looks whether a silent server is still there.
const PING: Duration = Duration::from_secs(10);

/// Begins to connect to a server. `on_change` hears of connections and losses.
///
/// `capacity`: most requests that wait to be written. Fails only if a file does not have what an option promises.
pub(crate) async fn connect(
    servers: &Servers,
    options: &Server,
    capacity: usize,
    on_change: impl Fn(Change) + Send + Sync + 'static,
) -> Result<Client, Failure> {
    let on_change = Arc::new(on_change);
    let listener = Arc::clone(&on_change);
    let connect = with_secrets(ConnectOptions::new(), options)?
        .name("relay-forward")
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| pause(attempts as u32))
        .connection_timeout(CONNECT_MAX)
        .ping_interval(PING)
        .client_capacity(capacity)
        .event_callback(move |event| {
            if let Some(change) = Change::of(event) {
                listener(change);
            }
            std::future::ready(())
        })
        // It is called before each round of tries, and leaves the choice to the client.
        .reconnect_to_server_callback(move |servers, _| {
            if let Some(change) = Change::of_servers(&servers) {
                on_change(change);
            }
            std::future::ready(None)
        });
    let is_secure = options.tls_required || servers.0.iter().any(ServerAddr::tls_required);
    let mut connect = with_tls(connect, options)?.require_tls(is_secure);
    if is_secure {
        connect = connect.ignore_discovered_servers();
    }
    let client = connect.connect(&servers.0[..]).await;
    // It connects later, so this is what a file of TLS has.
    client.map_err(|error| Failure::system("prepare a connection", std::io::Error::other(error)))
}

/// Returns the pause before try number `attempts`, from 1: none, then 100 ms, and twice as much each time.
pub(crate) fn pause(attempts: u32) -> Duration {
    match attempts {
        0 | 1 => Duration::ZERO,
        more => PAUSE_MIN.saturating_mul(1 << (more - 2).min(16)).min(PAUSE_MAX),
    }
}

fn with_secrets(connect: ConnectOptions, options: &Server) -> Result<ConnectOptions, Failure> {
    if let Some(path) = &options.creds {
        let text = read(path)?;
        return connect.credentials(&text).map_err(|_| {
            Failure::content(path, "it has no credentials: nsc generate creds makes such files")
        });
    }
    if let Some(path) = &options.user_file {
        let text = read(path)?;
        let mut lines = text.lines();
        return match (lines.next(), lines.next()) {
            (Some(user), Some(password)) if !user.is_empty() => {
                Ok(connect.user_and_password(user.to_owned(), password.to_owned()))
            }
            _ => {
                Err(Failure::content(path, "it has no user in its first line, or no password in its second"))
            }
        };
    }
    if let Some(path) = &options.token_file {
        let text = read(path)?;
        return match text.lines().next() {
            Some(token) if !token.is_empty() => Ok(connect.token(token.to_owned())),
            _ => Err(Failure::content(path, "it has no token in its first line")),
        };
    }
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    Ok(match (variable("NATS_TOKEN"), variable("NATS_USER")) {
        (Some(token), _) => connect.token(token),
        (None, Some(user)) => connect.user_and_password(user, variable("NATS_PASSWORD").unwrap_or_default()),
        (None, None) => connect,
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::file(path, error))
}

/// Returns the name of this machine.
pub(crate) fn hostname() -> Result<String, Failure> {
    let name = read(Path::new("/proc/sys/kernel/hostname"))?.trim_end().to_owned();
    if name.is_empty() {
        return Err(Failure::system("find the hostname", std::io::Error::other("it is empty: say --host")));
    }
    if name == ALL_HOSTS {
        let why = std::io::Error::other("readers take 'all' for all hosts: say --host with another name");
        return Err(Failure::system("use the hostname", why));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<u128> = (1..9).map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn files_of_secrets_are_checked_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (content, is_user, is_token, is_creds) in
            [("me\nhunter2\n", true, true, false), ("hunter2", false, true, false), ("", false, false, false)]
        {
            fs::write(&path, content).unwrap();
            let file = Some(path.clone());
            for (server, is_good) in [
                (Server { user_file: file.clone(), ..Server::default() }, is_user),
                (Server { token_file: file.clone(), ..Server::default() }, is_token),
                (Server { creds: file.clone(), ..Server::default() }, is_creds),
            ] {
                match with_secrets(ConnectOptions::new(), &server) {
                    Ok(_) => assert!(is_good, "{content:?} {server:?}"),
                    Err(failure) => {
                        let said = failure.to_string();
                        assert!(!is_good && !said.contains("hunter2") && said.contains("secret: "), "{said}");
                    }
                }
            }
        }
    }
}
