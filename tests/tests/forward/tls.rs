//! TLS: what the server is, what the forwarder is, and that no secret goes to another server.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use async_nats::ConnectOptions;
use relayfs_tests::forwarded::from;
use relayfs_tests::{Mount, complaint, eventually, run, stdout_of, tool};
use tempfile::TempDir;

use crate::errors::{ARGS, write};
use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server, free_port};
use crate::stored::{raw, sub_buffers};

/// What is said if the server does not accept our certificate.
const CERTIFICATE: &str = "; check --tls-cert and --tls-key, and the authority that the server knows";
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority that signs certificates.
struct Authority {
    dir: TempDir,
}

impl Authority {
    #[track_caller]
    fn new(name: &str) -> Authority {
        let authority = Authority { dir: tempfile::tempdir().expect("a temporary directory") };
        let (key, cert) = (authority.path("ca.key"), authority.path("ca.pem"));
        let mut command = tool("openssl", "openssl");
        command.args(["req", "-x509", "-days", "2", "-subj", &format!("/CN={name}")]).args(NEW_KEY);
        stdout_of(command.arg("-keyout").arg(key).arg("-out").arg(cert));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes NAME.pem and NAME.key.
    #[track_caller]
    fn sign(&self, name: &str) {
        let path = |end: &str| self.path(&format!("{name}.{end}"));
        let mut command = tool("openssl", "openssl");
        command.arg("req").args(NEW_KEY).args(["-subj", &format!("/CN={name}")]);
        stdout_of(command.arg("-keyout").arg(path("key")).arg("-out").arg(path("csr")));
        fs::write(path("ext"), "subjectAltName=IP:127.0.0.1\n").expect("extensions");
        let mut command = tool("openssl", "openssl");
        command.args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"]).arg(path("csr"));
        command.arg("-CA").arg(self.path("ca.pem")).arg("-CAkey").arg(self.path("ca.key"));
        stdout_of(command.arg("-extfile").arg(path("ext")).arg("-out").arg(path("pem")));
    }

    /// An option that names a file.
    fn arg(&self, option: &str, name: &str) -> String {
        format!("{option}={}", self.path(name).display())
    }
}

/// Starts a server with a certificate; `more` is more of its TLS.
#[track_caller]
fn serve(authority: &Authority, more: &str, others: &str) -> Server {
    authority.sign("server");
    let path = |name: &str| authority.path(name).display().to_string();
    let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    Server::start(&format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?} {more} }}\n{others}"
    ))
}

/// Forwards and reads with these options, and checks what was stored.
#[track_caller]
fn works(url: &str, args: &[&str], options: ConnectOptions) {
    let mount = Mount::new(ARGS);
    let all: Vec<&str> = args.iter().copied().chain(["--create"]).collect();
    let mut forwarder = Forwarder::start(&mount, url, "h", &all);
    let written = write(&mount, "by TLS");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(forwarder.said(), "relay-forward: stream 'relay' created\n");
    let client = Client::connect(url, options);
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
    let all: Vec<&str> = args.iter().copied().chain(["-c", "cpu"]).collect();
    assert_eq!(stdout_of(&mut from(url, &all)), written);
    client.delete();
}

/// Checks that forwarder and reader end with an error of these words.
#[track_caller]
fn is_refused(url: &str, args: &[&str], why: &str) {
    let mount = Mount::new(ARGS);
    Forwarder::start(&mount, url, "h", args).fails(&[why]);
    for more in [&[][..], &["-f"]] {
        let args: Vec<&str> = args.iter().chain(more).copied().collect();
        let said = complaint("relay-forward", &run(&mut from(url, &args)));
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn server_has_to_prove_what_it_is() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = serve(&ours, "", "");
    let ca = ours.arg("--tls-ca", "ca.pem");
    let options = || ConnectOptions::new().add_root_certificates(ours.path("ca.pem"));
    let secure = server.url().replace("nats://", "tls://");
    works(&secure, &[&ca], options());
    works(&server.url(), &[&ca, "--tls-required"], options());
    is_refused(
        &secure,
        &[&other.arg("--tls-ca", "ca.pem")],
        "invalid peer certificate: UnknownIssuer; check --tls-ca",
    );
    is_refused(&secure, &[], "invalid peer certificate: UnknownIssuer; check --tls-ca");
}

#[test]
fn forwarder_proves_what_it_is() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = serve(&ours, ", verify: true", "");
    [&ours, &other].iter().for_each(|authority| authority.sign("client"));
    let url = server.url().replace("nats://", "tls://");
    let ca = ours.arg("--tls-ca", "ca.pem");
    let (cert, key) = (ours.arg("--tls-cert", "client.pem"), ours.arg("--tls-key", "client.key"));
    let options = ConnectOptions::new().add_root_certificates(ours.path("ca.pem"));
    let options = options.add_client_certificate(ours.path("client.pem"), ours.path("client.key"));
    works(&url, &[&ca, &cert, &key], options);
    is_refused(&url, &[&ca], CERTIFICATE);
    let (cert, key) = (other.arg("--tls-cert", "client.pem"), other.arg("--tls-key", "client.key"));
    is_refused(&url, &[&ca, &cert, &key], CERTIFICATE);
}

/// Where no server is needed to see it.
#[test]
fn files_of_tls_are_checked_at_the_start() {
    let ours = Authority::new("ours");
    ["one", "other"].iter().for_each(|name| ours.sign(name));
    fs::write(ours.path("empty.pem"), "").expect("a file");
    fs::write(ours.path("bad.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .expect("a file");
    let url = format!("tls://127.0.0.1:{}", free_port());
    let pair = |cert, key| [ours.arg("--tls-cert", cert), ours.arg("--tls-key", key)];
    for (args, why) in [
        (pair("one.pem", "other.key"), "other.key: it is not the key of the certificate in "),
        (pair("empty.pem", "one.key"), "empty.pem: it has no certificate as PEM"),
        (pair("one.pem", "one.pem"), "one.pem: it has no private key as PEM"),
        (pair("bad.pem", "one.key"), "bad.pem: its certificate cannot be used: "),
        (
            [ours.arg("--tls-ca", "empty.pem"), "--tls-required".into()],
            "empty.pem: it has no certificate as PEM",
        ),
        (
            [ours.arg("--tls-ca", "bad.pem"), "--tls-required".into()],
            "bad.pem: its certificate cannot be used: ",
        ),
    ] {
        is_refused(&url, &args.each_ref().map(String::as_str), why);
    }
}

#[test]
fn server_without_tls_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let thief = Thief::listen(listener);
    let mount = Mount::new(ARGS);
    let secret = mount.beside("secret");
    fs::write(&secret, "me\nhunter2\n").expect("a file");
    let file = format!("--user-file={}", secret.display());
    let mut forwarder = Forwarder::start(&mount, &format!("tls://127.0.0.1:{port}"), "h", &[&file]);
    eventually("tries", || thief.n_connections() >= 3);
    forwarder.end();
    assert!(!thief.has_password());
}

/// Something that poses as a server without TLS.
struct Thief {
    n_connections: Arc<AtomicUsize>,
    has_password: Arc<AtomicBool>,
}

impl Thief {
    fn listen(listener: TcpListener) -> Thief {
        let thief = Thief { n_connections: Arc::default(), has_password: Arc::default() };
        let (count, has_password) = (Arc::clone(&thief.n_connections), Arc::clone(&thief.has_password));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut out = stream.try_clone().expect("a second handle");
                let info = b"INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"max_payload\":1048576}\r\n";
                let _ = out.write_all(info);
                let mut said = Vec::new();
                let _ = BufReader::new(stream).read_until(b'\n', &mut said);
                let found = String::from_utf8_lossy(&said).contains("hunter2");
                // SeqCst: the test looks at both.
                has_password.fetch_or(found, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        thief
    }

    fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }

    fn has_password(&self) -> bool {
        self.has_password.load(Ordering::SeqCst)
    }
}

/// Stands between the forwarder and a server, and adds another server to what that one says before TLS begins.
struct Middle {
    port: u16,
    /// Whether connections are cut.
    is_cut: Arc<AtomicBool>,
    n_cut: Arc<AtomicUsize>,
}

impl Middle {
    fn new(server: u16, thief: u16) -> Middle {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let middle = Middle { port, is_cut: Arc::default(), n_cut: Arc::default() };
        let (is_cut, n_cut) = (Arc::clone(&middle.is_cut), Arc::clone(&middle.n_cut));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if is_cut.load(Ordering::SeqCst) {
                    n_cut.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
                relay(client, server, thief, &is_cut);
            }
        });
        middle
    }
}

fn relay(mut client: TcpStream, server: TcpStream, thief: u16, is_cut: &Arc<AtomicBool>) {
    let mut from_server = BufReader::new(server.try_clone().expect("a second handle"));
    let mut info = String::new();
    from_server.read_line(&mut info).expect("the server's first line");
    let info = info.replacen('{', &format!("{{\"connect_urls\":[\"127.0.0.1:{thief}\"],"), 1);
    client.write_all(info.as_bytes()).expect("the forwarder");
    let (from_client, to_client) = (client.try_clone().expect("a second handle"), client);
    for (mut from, mut to) in
        [(Box::new(from_server) as Box<dyn Read + Send>, to_client), (Box::new(from_client), server)]
    {
        let is_cut = Arc::clone(is_cut);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if is_cut.load(Ordering::SeqCst) || to.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

/// What is in the middle names another server, and cuts the connection.
#[test]
fn servers_that_were_not_named_get_no_password() {
    let authority = Authority::new("ours");
    let server = serve(&authority, "", "authorization { user: me, password: hunter2 }");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let thief_port = listener.local_addr().expect("an address").port();
    let thief = Thief::listen(listener);
    let middle = Middle::new(server.port(), thief_port);
    let mount = Mount::new(ARGS);
    let secret = mount.beside("secret");
    fs::write(&secret, "me\nhunter2\n").expect("a file");
    let (file, ca) = (format!("--user-file={}", secret.display()), authority.arg("--tls-ca", "ca.pem"));
    let url = format!("tls://127.0.0.1:{}", middle.port);
    let mut forwarder = Forwarder::start(&mount, &url, "h", &["--create", &file, &ca]);
    write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    middle.is_cut.store(true, Ordering::SeqCst);
    write(&mount, "behind");
    eventually("tries", || middle.n_cut.load(Ordering::SeqCst) >= 4);
    assert_eq!((thief.n_connections(), thief.has_password()), (0, false));
    forwarder.end();
}
