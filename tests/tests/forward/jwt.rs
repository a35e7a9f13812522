//! Credentials as nsc(1) makes them: an operator vouches for an account, and that for a user.

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with an account, and a user of it.
pub(crate) struct Operator {
    /// Lines of a server's configuration. They name the file of [`Operator::jwt`].
    pub(crate) config: String,
    /// What the server has to trust.
    pub(crate) jwt: String,
    /// A file of credentials.
    pub(crate) creds: String,
    /// The secret in it.
    pub(crate) seed: String,
}

/// Signs what `by` says about `whom`.
fn sign(by: &KeyPair, whom: &KeyPair, kind: &str, mut claims: Value) -> String {
    (claims["type"], claims["version"]) = (json!(kind), json!(2));
    let claims = json!({
        "jti": "x", "iat": 1_700_000_000, "iss": by.public_key(), "sub": whom.public_key(), "name": kind,
        "nats": claims,
    });
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
    let signature = by.sign(text.as_bytes()).expect("a signature");
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

impl Operator {
    /// Makes all keys. The server finds the operator's word in the file `path`.
    pub(crate) fn new(path: &str) -> Operator {
        let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
        let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
        let accounts = [(&account, -1), (&system, 0)].map(|(account, storage)| {
            let limits = json!({ "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
            } });
            format!("{}: {}", account.public_key(), sign(&operator, account, "account", limits))
        });
        let word = json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let (jwt, seed) = (sign(&account, &user, "user", word), user.seed().expect("a seed"));
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let config = format!(
            "operator: {path:?}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{}\n}}\n",
            system.public_key(),
            accounts.join("\n")
        );
        Operator { config, jwt: sign(&operator, &operator, "operator", json!({})), creds, seed }
    }
}
