//! The server or the stream goes while `relay-forward --from` without `-f` reads.

use std::io::{self, PipeReader, Read, pipe};
use std::thread;

use relayfs_tests::forwarded::{Origin, from, packet};
use relayfs_tests::{Process, exit_code};

use crate::server::Server;

const NAME: &str = "app/log";
/// Messages of the stream: more than a pipe takes.
const N: u64 = 200;
/// Bytes of each text.
const LEN: usize = 3000;

/// A reader that has begun, and waits for room in its output.
struct Reader {
    process: Process,
    out: PipeReader,
    said: PipeReader,
}

impl Reader {
    #[track_caller]
    fn begin(server: &Server) -> Reader {
        server.client().create(|_| {});
        let mut client = server.raw_client();
        let mut origin = Origin::made_up("a", NAME);
        origin.send_own_texts("", &mut client);
        for number in 0..N {
            let packet = packet(0, number, 0, 1000 + number, &"x".repeat(LEN));
            origin.send(0, number, 0, 1, &packet, &mut client);
        }
        let ((mut out, output), (said, error)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let mut command = from(&server.url(), &["-c", NAME, "-o", "cat"]);
        let process = Process::start(command.stdout(output).stderr(error));
        out.read_exact(&mut [0; LEN]).expect("what the reader prints");
        Reader { process, out, said }
    }

    /// Lets it read on until it ends with an error. Returns how many lines it has printed, and what it has said.
    #[track_caller]
    fn fails(self) -> (usize, String) {
        let (code, n_lines, said) = self.ends();
        assert_eq!(code, 1, "{said}");
        (n_lines, said)
    }

    /// Lets it read on until it ends. Returns its status, how many lines it has printed, and what it has said.
    #[track_caller]
    fn ends(mut self) -> (i32, usize, String) {
        // The wait for the process has an end, and those for what it writes have none.
        let [out, said] = [self.out, self.said].map(|pipe| thread::spawn(|| io::read_to_string(pipe)));
        let code = exit_code(self.process.wait());
        let [out, said] = [out, said].map(|text| text.join().expect("a thread").expect("text"));
        (code, out.lines().count(), said)
    }
}

#[test]
fn stream_that_is_deleted_ends_a_reader() {
    let server = Server::start("");
    let reader = Reader::begin(&server);
    server.client().delete();
    let (n_lines, said) = reader.fails();
    assert!(
        n_lines < N as usize && said.contains("cannot read stream 'relay' to its end: stream not found"),
        "{said}"
    );
}

#[test]
fn server_that_does_not_return_ends_a_reader() {
    let mut server = Server::start("");
    let reader = Reader::begin(&server);
    server.kill();
    let (n_lines, said) = reader.fails();
    assert!(n_lines < N as usize && said.contains("cannot read stream 'relay' to its end: "), "{said}");
    assert!(said.contains("; no answer for 30s"), "{said}");
}

/// What the reader cannot have before the server is there again is waited for.
#[test]
fn server_that_returns_is_read_to_the_end() {
    let mut server = Server::start("");
    let reader = Reader::begin(&server);
    server.kill();
    server.restart();
    let (code, n_lines, said) = reader.ends();
    assert_eq!((code, n_lines), (0, N as usize), "{said}");
}
