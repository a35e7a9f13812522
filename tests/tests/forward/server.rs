//! A nats-server with a temporary store, a client of it, and a forwarder.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageError, Stream};
use async_nats::jetstream::{self, Context, stream};
use nix::sys::signal::Signal;
use relayfs_tests::nats::NatsClient;
use relayfs_tests::stopped::stands_still;
use relayfs_tests::{DEADLINE, Mount, Process, eventually, exit_code, program, tool};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The stream of all tests.
pub(crate) const STREAM: &str = "relay";

/// Lines of a server's log that a failed test shows.
const LOG_MAX: usize = 40;

/// A server, with a directory for its store.
pub(crate) struct Server {
    process: Process,
    dir: TempDir,
    port: u16,
}

impl Server {
    /// Starts a server with JetStream; `more` are lines of its configuration.
    #[track_caller]
    pub(crate) fn start(more: &str) -> Server {
        Server::on_port(free_port(), more)
    }

    #[track_caller]
    pub(crate) fn on_port(port: u16, more: &str) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        configure(&dir, port, more);
        let process = serve(&dir);
        let server = Server { process, dir, port };
        server.is_there();
        server
    }

    /// Waits until it accepts connections.
    #[track_caller]
    fn is_there(&self) {
        eventually("nats-server", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
    }

    /// Lets it stand still: connections stay, and no answer comes.
    pub(crate) fn halt(&self) {
        self.process.signal(Signal::SIGSTOP);
        stands_still(self.process.pid());
    }

    /// Lets it run again.
    pub(crate) fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Connects a client that can publish what no library would.
    #[track_caller]
    pub(crate) fn raw_client(&self) -> NatsClient {
        NatsClient::connect(self.port)
    }

    /// Starts it again on its store.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.process = serve(&self.dir);
        self.is_there();
    }

    /// Starts it again on its store, with other lines in its configuration.
    #[track_caller]
    pub(crate) fn restart_with(&mut self, more: &str) {
        configure(&self.dir, self.port, more);
        self.restart();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Lets it take other lines in its configuration while it runs. Connections stay.
    #[track_caller]
    pub(crate) fn reload_with(&self, more: &str) {
        let n_reloads = || self.log().matches("Reloaded server configuration").count();
        let before = n_reloads();
        configure(&self.dir, self.port, more);
        self.process.signal(Signal::SIGHUP);
        eventually("the server's new configuration", || n_reloads() > before);
    }

    /// Starts it again if it has crashed. Returns whether it had.
    ///
    /// nats-server 2.9 can crash when a stream goes while a message of it is asked for.
    #[track_caller]
    pub(crate) fn revive(&mut self) -> bool {
        let is_gone = !self.process.is_running();
        if is_gone {
            self.restart();
        }
        is_gone
    }

    /// Connects a client.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url(), ConnectOptions::new())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let end: Vec<&str> = log.lines().rev().take(LOG_MAX).collect();
            println!("nats-server: {}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

#[track_caller]
fn configure(dir: &TempDir, port: u16, more: &str) {
    let store = dir.path().join("store");
    let config =
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?} }}\n{more}\n", store.display());
    fs::write(dir.path().join("config"), config).expect("a configuration");
}

#[track_caller]
fn serve(dir: &TempDir) -> Process {
    let log = File::create(dir.path().join("log")).expect("a log");
    let mut command = tool("nats-server", "nats-server");
    command.arg("-c").arg(dir.path().join("config")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process::start(&mut command)
}

/// Returns a port that was free a moment ago.
#[track_caller]
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The stream of most tests.
pub(crate) fn usual() -> stream::Config {
    stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{STREAM}.>")],
        ..stream::Config::default()
    }
}

/// A client of a server, for calls that wait.
pub(crate) struct Client {
    runtime: Runtime,
    /// For calls that are made again.
    context: Context,
    /// For calls that change something, and are made once.
    patient: Context,
}

impl Client {
    #[track_caller]
    pub(crate) fn connect(url: &str, options: ConnectOptions) -> Client {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = runtime.block_on(options.retry_on_initial_connect().connect(url)).expect("a client");
        let context = |timeout| {
            // It starts a task.
            let _entered = runtime.enter();
            let mut context = jetstream::new(client.clone());
            context.set_timeout(timeout);
            context
        };
        let (context, patient) = (context(Duration::from_secs(1)), context(DEADLINE));
        Client { runtime, context, patient }
    }

    /// Creates the stream; `set` changes what is not as usual.
    #[track_caller]
    pub(crate) fn create(&self, set: impl Fn(&mut stream::Config)) {
        let mut config = usual();
        set(&mut config);
        eventually("the stream", || self.try_create(&config));
    }

    /// Tries to create the stream. Returns whether it is there.
    pub(crate) fn try_create(&self, config: &stream::Config) -> bool {
        self.runtime.block_on(self.context.create_stream(config.clone())).is_ok()
    }

    /// Changes the stream.
    #[track_caller]
    pub(crate) fn update(&self, set: impl FnOnce(&mut stream::Config)) {
        let mut config = self.runtime.block_on(self.stream()).cached_info().config.clone();
        set(&mut config);
        self.runtime.block_on(self.patient.update_stream(config)).expect("a changed stream");
    }

    #[track_caller]
    pub(crate) fn delete(&self) {
        self.runtime.block_on(self.patient.delete_stream(STREAM)).expect("no stream");
    }

    /// Deletes the stream, if it is there.
    pub(crate) fn delete_if_there(&self) {
        let _ = self.runtime.block_on(self.context.delete_stream(STREAM));
    }

    /// Asks the stream's leader to step down.
    pub(crate) fn step_down(&self) {
        let subject = format!("STREAM.LEADER.STEPDOWN.{STREAM}");
        let asked = self.context.request::<_, _, serde_json::Value>(subject, &());
        let _ = self.runtime.block_on(asked);
    }

    pub(crate) fn info(&self) -> Option<stream::Info> {
        let found = self.runtime.block_on(self.context.get_stream(STREAM)).ok()?;
        Some(found.cached_info().clone())
    }

    /// Number of messages that were ever in the stream; 0 if it cannot be asked.
    pub(crate) fn count(&self) -> u64 {
        self.info().map_or(0, |info| info.state.last_sequence)
    }

    /// Returns the stream, for calls that are made once.
    async fn stream(&self) -> Stream {
        self.patient.get_stream(STREAM).await.expect("a stream")
    }

    /// Removes all messages.
    #[track_caller]
    pub(crate) fn purge(&self) {
        let purged = self.runtime.block_on(async { self.stream().await.purge().await });
        purged.expect("an empty stream");
    }

    /// Removes the messages of a subject.
    #[track_caller]
    pub(crate) fn purge_subject(&self, subject: &str) {
        let purged = self.runtime.block_on(async { self.stream().await.purge().filter(subject).await });
        assert!(purged.expect("an answer").purged > 0, "{subject}");
    }

    /// Removes a message.
    #[track_caller]
    pub(crate) fn delete_message(&self, sequence: u64) {
        let deleted = self.runtime.block_on(async { self.stream().await.delete_message(sequence).await });
        assert!(deleted.expect("a message"), "{sequence} is there");
    }

    /// Returns the last message of a subject, if there is one and the server answers.
    pub(crate) fn find_last(&self, subject: &str) -> Option<StreamMessage> {
        self.runtime.block_on(async {
            let stream = self.context.get_stream(STREAM).await.ok()?;
            stream.get_last_raw_message_by_subject(subject).await.ok()
        })
    }

    /// Returns the last message of a subject.
    #[track_caller]
    pub(crate) fn last(&self, subject: &str) -> StreamMessage {
        let mut last = None;
        eventually("a message", || {
            last = self.find_last(subject);
            last.is_some()
        });
        last.expect("set above")
    }

    /// Reads all messages.
    #[track_caller]
    pub(crate) fn read(&self) -> Vec<StreamMessage> {
        let (messages, unreadable) = self.read_readable();
        assert_eq!(unreadable, 0, "all that are there");
        messages
    }

    /// Reads all messages whose headers can be read, and counts the others.
    #[track_caller]
    pub(crate) fn read_readable(&self) -> (Vec<StreamMessage>, u64) {
        let mut stream = None;
        eventually("the stream", || {
            stream = self.runtime.block_on(self.context.get_stream(STREAM)).ok();
            stream.is_some()
        });
        let stream = stream.expect("set above");
        let state = &stream.cached_info().state;
        let numbers = state.first_sequence.max(1)..=state.last_sequence;
        let get = |number| {
            let mut got = None;
            eventually("an answer", || {
                got = match self.runtime.block_on(stream.get_raw_message(number)) {
                    // No answer in time says nothing about the message.
                    Err(error) if is_unanswered(&error) => None,
                    result => Some(result.ok()),
                };
                got.is_some()
            });
            got.flatten()
        };
        let messages: Vec<StreamMessage> = numbers.filter_map(get).collect();
        let unreadable = state.messages - messages.len() as u64;
        (messages, unreadable)
    }
}

/// Whether a message was not given since no server has answered.
fn is_unanswered(error: &RawMessageError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<RequestError>());
    source.is_some_and(|error| {
        matches!(error.kind(), RequestErrorKind::TimedOut | RequestErrorKind::NoResponders)
    })
}

/// A running `relay-forward --to`.
pub(crate) struct Forwarder {
    process: Process,
    log: PathBuf,
    command: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Forwarder {
    /// Forwards a mount under a host's name.
    #[track_caller]
    pub(crate) fn start(mount: &Mount, url: &str, host: &str, args: &[&str]) -> Forwarder {
        Forwarder::with_variables(mount, url, host, args, Vec::new())
    }

    /// The same, with variables in its environment.
    #[track_caller]
    pub(crate) fn with_variables(
        mount: &Mount,
        url: &str,
        host: &str,
        args: &[&str],
        variables: Vec<(&'static str, String)>,
    ) -> Forwarder {
        let point = mount.point().display().to_string();
        let first = ["--to", url, "--mount", &point, "--host", host];
        let command: Vec<String> = first.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let log = mount.beside(&format!("forward-{host}"));
        File::create(&log).expect("a log");
        Forwarder { process: run(&command, &log, &variables), log, command, variables }
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("its log")
    }

    #[track_caller]
    pub(crate) fn says(&self, what: &str) {
        eventually(&format!("{what:?} in what it says: {}", self.said()), || self.said().contains(what));
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
    }

    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.process = run(&self.command, &self.log, &self.variables);
    }

    /// Waits until it ends with an error of one line, in which these words are.
    #[track_caller]
    pub(crate) fn fails(&mut self, words: &[&str]) {
        assert_eq!(exit_code(self.process.wait()), 1, "{}", self.said());
        let said = self.said();
        let has_all = words.iter().all(|word| said.contains(word));
        assert!(said.lines().count() == 1 && has_all && !said.contains("trying again"), "{words:?}: {said}");
    }

    /// Ends it, and checks that it ends well.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        self.process.signal(Signal::SIGTERM);
        assert_eq!(exit_code(self.process.wait()), 0, "{}", self.said());
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

#[track_caller]
fn run(args: &[String], log: &PathBuf, variables: &[(&str, String)]) -> Process {
    let log = File::options().append(true).open(log).expect("its log");
    let mut command = Command::new(program("relay-forward"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.env_remove("NATS_TOKEN").env_remove("NATS_USER").env_remove("NATS_PASSWORD");
    Process::start(command.envs(variables.iter().map(|(name, value)| (name, value))))
}
