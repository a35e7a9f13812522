//! Files of TLS. They are checked before there is a connection: with wrong ones there never is.

use std::path::Path;

use async_nats::ConnectOptions;
use async_nats::rustls::pki_types::pem::{Error as PemError, PemObject};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, Error, RootCertStore};

use super::read;
use crate::error::Failure;
use crate::options::Server;

/// Adds the files that the options name.
pub(super) fn with_tls(mut connect: ConnectOptions, options: &Server) -> Result<ConnectOptions, Failure> {
    if let Some(path) = &options.tls_ca {
        let mut trusted = RootCertStore::empty();
        for authority in certificates(path)? {
            trusted.add(authority).map_err(|error| Failure::content(path, useless(&error)))?;
        }
        connect = connect.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&options.tls_cert, &options.tls_key) {
        check_pair(cert, key)?;
        connect = connect.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(connect)
}

/// Checks that a key is the one of a certificate.
fn check_pair(cert: &Path, key: &Path) -> Result<(), Failure> {
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes());
    let secret = secret.map_err(|error| Failure::content(key, lacks("private key", &error)))?;
    let builder = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
    match builder.with_client_auth_cert(chain, secret) {
        Ok(_) => Ok(()),
        Err(Error::InconsistentKeys(_)) => {
            let why = format!("it is not the key of the certificate in {}", cert.display());
            Err(Failure::content(key, format!("{why}; check --tls-cert and --tls-key")))
        }
        Err(Error::InvalidCertificate(why)) => {
            Err(Failure::content(cert, useless(&Error::InvalidCertificate(why))))
        }
        Err(error) => Err(Failure::content(key, format!("its private key cannot be used: {error}"))),
    }
}

/// Returns the certificates in a file; there is one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.and_then(|all| if all.is_empty() { Err(PemError::NoItemsFound) } else { Ok(all) });
    all.map_err(|error| Failure::content(path, lacks("certificate", &error)))
}

fn lacks(what: &str, error: &PemError) -> String {
    match error {
        PemError::NoItemsFound => format!("it has no {what} as PEM"),
        error => format!("its {what} cannot be read: {error}"),
    }
}

fn useless(error: &Error) -> String {
    format!("its certificate cannot be used: {error}")
}
