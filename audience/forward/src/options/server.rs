//! Options about the server: where it is, and how this process proves what it is. No secret is among them.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use async_nats::ServerAddr;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Args, Command};

use super::SERVER;

/// Servers of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Servers(pub(crate) Vec<ServerAddr>);

impl FromStr for Servers {
    type Err = String;

    /// Parses URLs with commas between them.
    fn from_str(text: &str) -> Result<Servers, String> {
        let server = |url: &str| {
            let server: ServerAddr =
                url.trim().parse().map_err(|_| "not a URL as nats://HOST:4222".to_owned())?;
            if server.host().is_empty() || url.trim().is_empty() {
                return Err("not a URL as nats://HOST:4222".to_owned());
            }
            if server.username().is_some() || server.password().is_some() {
                return Err("other processes see a URL: say user and password by --user-file".to_owned());
            }
            if server.is_websocket() {
                return Err("websockets are not supported: say nats:// or tls://".to_owned());
            }
            Ok(server)
        };
        text.split(',').map(server).collect::<Result<_, _>>().map(Servers)
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// Parses [`Servers`]. Its errors do not repeat the URL, which may have a password.
#[derive(Clone, Debug)]
pub(crate) struct ServersParser;

impl TypedValueParser for ServersParser {
    type Value = Servers;

    fn parse_ref(&self, _: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Servers, clap::Error> {
        let text = value.to_str().ok_or_else(|| "not a URL as nats://HOST:4222".to_owned());
        text.and_then(str::parse).map_err(|why| {
            let name = arg.and_then(Arg::get_long).unwrap_or_default();
            clap::Error::raw(ErrorKind::ValueValidation, format!("--{name}: {why}"))
        })
    }
}

/// How this process proves what it is, and how the server does.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Server {
    /// A file of credentials, as nsc(1) makes them
    #[arg(long, value_name = "FILE", group = "secret", help_heading = SERVER)]
    pub(crate) creds: Option<PathBuf>,

    /// User and password [or $NATS_USER, $NATS_PASSWORD]
    ///
    /// The user is the first line of the file, the password is the second.
    #[arg(long, alias = "user_file", value_name = "FILE", group = "secret", help_heading = SERVER)]
    pub(crate) user_file: Option<PathBuf>,

    /// A file with a token [or $NATS_TOKEN]
    #[arg(long, alias = "token_file", value_name = "FILE", group = "secret", help_heading = SERVER)]
    pub(crate) token_file: Option<PathBuf>,

    /// Trust only servers that this authority vouches for
    ///
    /// The file has its certificate as PEM. Without it, the authorities of the system count.
    #[arg(long, alias = "tls_ca", value_name = "FILE", help_heading = SERVER)]
    pub(crate) tls_ca: Option<PathBuf>,

    /// The certificate of this client, as PEM
    #[arg(long, alias = "tls_cert", value_name = "FILE", requires = "tls_key", help_heading = SERVER)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The key of that certificate, as PEM
    #[arg(long, alias = "tls_key", value_name = "FILE", requires = "tls_cert", help_heading = SERVER)]
    pub(crate) tls_key: Option<PathBuf>,

    /// Refuse servers without TLS
    ///
    /// If one URL begins with tls://, this applies to all. Only servers that have a URL are connected to then, and
    /// none that a server names.
    #[arg(long, alias = "tls_required", help_heading = SERVER)]
    pub(crate) tls_required: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_no_secrets() {
        let servers: Servers = "nats://a:4222,b, tls://c:7".parse().unwrap();
        assert_eq!(servers.to_string(), "a:4222,b:4222,c:7");
        for bad in ["", "nats://", "nats://a,,b", "http://a", "ws://a"] {
            assert!(bad.parse::<Servers>().is_err(), "{bad:?}");
        }
        for secret in
            ["nats://me:hunter2@a", "nats://hunter2@a", "nats://:hunter2@a", "nats://me:hunter2@a:port"]
        {
            let said = secret.parse::<Servers>().unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
