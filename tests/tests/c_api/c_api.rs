//! The functions of relay.h, called by a C program on a real mount.

use std::io::Write;
use std::process::{Command, Stdio};

use relayfs_tests::audience::names;
use relayfs_tests::direct::is_without_sequences;
use relayfs_tests::librelay::{Caller, Linked, install, installed, libraries, pkg_config, prepare};
use relayfs_tests::{Mount, Process, eventually, stdout_of, text, tool, workspace};

/// Returns a caller on the first CPU that has written there, so that its messages are in one buffer.
#[track_caller]
fn caller(mount: &Mount) -> Caller {
    let mut caller = Caller::start(mount.point());
    caller.expect(&[("go 0", "0")]);
    caller
}

/// Installing another library does not touch running programs.
#[test]
fn running_programs_survive_replacement_of_library() {
    let root = tempfile::tempdir().expect("a temporary directory");
    install(root.path());
    let place = root.path().join("usr/lib");
    let library = std::fs::canonicalize(place.join("librelay.so.0")).expect("the library");
    let mount = Mount::new(&[]);
    drop(Caller::start(mount.point())); // compiles it
    let mut command = Command::new(libraries().join("api"));
    prepare(&mut command, mount.point()).env("LD_LIBRARY_PATH", &place);
    let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = process.child().stdin.take().expect("piped");
    writeln!(stdin, "open 0 log 8192 2").expect("the program reads");
    let maps = format!("/proc/{}/maps", process.pid());
    let has = |name: String| std::fs::read_to_string(&maps).expect("its maps").contains(&name);
    eventually("its start", || has(format!("{}\n", library.display())));
    install(root.path());
    assert!(has(format!("{} (deleted)\n", library.display())), "it has the old one");
    writeln!(stdin, "write 0 x").expect("the program reads");
    drop(stdin);
    assert!(process.wait().success());
    assert_eq!(process.stdout(), b"0\n0\n");
    let names = names(&place);
    assert!(!names.iter().any(|name| name.contains("new")), "{names:?}");
}

#[test]
fn channel_is_created_written_and_read() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("open 0 app/log 8192 2", "0"),
        ("write 0 one", "0"),
        ("__write 0 two", "0"),
        ("fill 0 x 0", "0"),
        ("null 0 0", "0"),
        ("flush 0", "0"),
        ("close 0", "0"),
    ]);
    assert_eq!(text(&mount.read("app/log0")), "onetwo");
    caller.end();
}

#[test]
fn existing_channel_is_attached_and_its_geometry_returned() {
    let mount = Mount::new(&[
        "--channel=was/there:subbuf-size=4096:n-subbufs=3:overwrite:header=16",
        "--channel=one:global",
    ]);
    let mut caller = caller(&mount);
    let n = mount.stats("cpu").keys().filter(|name| name.ends_with(".produced")).count() - 1;
    caller.expect(&[
        ("open 0 was/there 8192 2 five", "0"),
        (
            "shape 0",
            &format!("version 1 4096x3=12288 bufs {n} global 0 overwrite 1 header 16 name was/there 1"),
        ),
        ("open 1 one 8192 2", "0"),
        ("shape 1", "version 1 262144x4=1048576 bufs 1 global 1 overwrite 0 header 0 name one 1"),
        ("open 2 new 8192 2", "0"),
        ("shape 2", &format!("version 1 8192x2=16384 bufs {n} global 0 overwrite 0 header 0 name new 1")),
        ("open 3 new 5 5", "0"),
        ("shape 3", &format!("version 1 8192x2=16384 bufs {n} global 0 overwrite 0 header 0 name new 1")),
    ]);
    caller.end();
}

#[test]
fn mount_is_named_by_environment_or_call() {
    let (first, second) = (Mount::new(&[]), Mount::new(&[]));
    let mut caller = caller(&first);
    let socket = std::fs::canonicalize(second.path(".relay/socket")).expect("a link to the socket");
    caller.expect(&[
        ("at 0 - there 8192 2", "0"),
        ("write 0 first", "0"),
        (&format!("at 1 {} there 8192 2", second.point().display()), "0"),
        ("write 1 second", "0"),
        (&format!("at 2 {} there 8192 2", socket.display()), "0"),
        ("write 2 third", "0"),
        ("flush 0", "0"),
        ("flush 1", "0"),
        ("flush 2", "0"),
        // By a path in the tree, without a mount point.
        ("reset 2", "ENOTSUP"),
        ("consumed 2 0 1", "ENOTSUP"),
    ]);
    assert_eq!(text(&first.read("there0")), "first");
    assert_eq!(text(&second.read("there0")), "secondthird");
    caller.end();
}

#[test]
fn full_buffer_is_reported_and_drops_messages() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("open 0 cpu 1 1", "0"), // is there
        ("open 1 small 100 2", "0"),
        ("full 1 0", "0"),
        ("fill 1 a 100", "0"),
        ("fill 1 b 100", "0"),
        ("flush 1", "0"),
        ("full 1 0", "1"),
        ("toobig 1", "0"),
        ("fill 1 c 101", "EMSGSIZE"),
        ("toobig 1", "101"),
        ("reserve-much 1 102", "EMSGSIZE"),
        ("toobig 1", "102"),
    ]);
    // Over the socket, the message is on its way when the call returns.
    let full = if is_without_sequences() { "0" } else { "ENOSPC" };
    caller.expect(&[("fill 1 d 1", full), ("flush 1", "0")]);
    assert_eq!(mount.stats("small")["total.dropped"], 1);
    assert_eq!(mount.stats("small")["total.too_big"], 1);
    caller.expect(&[
        ("consumed 1 0 3", "EINVAL"),
        ("full 1 0", "1"),
        ("consumed 1 0 1", "0"),
        ("full 1 0", "0"),
        // Two would be more than there is: one it is.
        ("consumed 1 0 2", "0"),
        ("consumed 1 0 2", "0"),
        ("consumed 1 9999 1", "EINVAL"),
        ("fill 1 e 100", "0"),
        ("flush 1", "0"),
    ]);
    assert_eq!(text(&mount.read("small0")), "e".repeat(100));
    caller.expect(&[("fill 1 f 100", "0"), ("flush 1", "0"), ("reset 1", "0")]);
    assert_eq!(text(&mount.read("small0")), "");
    caller.end();
}

#[test]
fn reserved_message_is_written_by_commit_next_call_or_thread_end() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("open 0 app/log 8192 2", "0"),
        ("open 1 app/other 8192 2", "0"),
        ("commit 0", "EINVAL"),
        ("reserve 0 one.", "0"),
        ("commit 1", "EINVAL"),
        ("commit 0", "0"),
        ("commit 0", "EINVAL"),
        ("reserve 0 two.", "0"),
        ("write 0 three.", "0"),
        ("reserve 0 four.", "0"),
        ("reserve 0 five.", "0"),
        ("flush 1", "0"),
        ("thread 0 six.", "0"),
        ("reserve 0 seven.", "0"),
        ("close 0", "0"),
        ("commit 0", "EINVAL"),
        ("reserve 1 last", "0"),
    ]);
    assert_eq!(text(&mount.read("app/log0")), "one.two.three.four.five.six.seven.");
    caller.end();
    eventually("what was reserved at the end", || text(&mount.read("app/other0")) == "last");
}

#[test]
fn subbuf_start_is_asked_before_each_sub_buffer() {
    let mount = Mount::with_sequences(&[]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/log 100 2 admit", "0"),
        ("calls", "calls 1 padding 0 full 0 nested 0 removed 0"),
        ("fill 0 a 70", "0"),
        ("calls", "calls 0 padding 0 full 0 nested 0 removed 0"),
        ("fill 0 b 70", "0"),
        ("calls", "calls 1 padding 30 full 0 nested 0 removed 0"),
        ("fill 0 c 70", "0"),
        ("calls", "calls 1 padding 30 full 1 nested 0 removed 0"),
        ("fill 0 d 71", "0"),
        ("full 0 0", "1"),
    ]);
    // The channel overwrites for the daemon too: the last of two sub-buffers, and the writer takes the one before.
    assert_eq!(text(&mount.read("app/log0")), ["c".repeat(70), "d".repeat(71)].concat());
    caller.end();
}

#[test]
fn message_refused_by_subbuf_start_is_dropped_and_next_one_asks_again() {
    let mount = Mount::with_sequences(&[]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/log 100 2 full", "0"),
        ("fill 0 a 70", "0"),
        ("fill 0 b 70", "0"),
        ("fill 0 c 70", "ENOSPC"),
        ("fill 0 d 1", "ENOSPC"),
        ("calls", "calls 4 padding 0 full 1 nested 0 removed 0"),
    ]);
    assert_eq!(mount.stats("app/log")["total.dropped"], 2);
    assert_eq!(mount.stats("app/log")["total.overwritten_bytes"], 0);
    assert_eq!(text(&mount.read("app/log0")), ["a".repeat(70), "b".repeat(70)].concat());
    caller.expect(&[("fill 0 e 70", "0")]);
    assert_eq!(text(&mount.read("app/log0")), "e".repeat(70));
    caller.expect(&[
        ("open 1 app/never 100 2 refuse", "0"),
        ("fill 1 a 70", "0"),
        ("fill 1 b 70", "ENOSPC"),
        ("fill 1 c 10", "ENOSPC"),
    ]);
    // Messages that fit do not call it.
    assert_eq!(mount.send_to("app/never", 0, &[b"others"]).written, 1);
    assert_eq!(text(&mount.read("app/never0")), ["a".repeat(70), "others".into()].concat());
    caller.end();
}

#[test]
fn header_of_subbuf_start_begins_each_sub_buffer() {
    let mount = Mount::with_sequences(&["--channel=was:subbuf-size=64:n-subbufs=4:overwrite:header=4"]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/log 64 4 header=8", "0"),
        ("fill 0 a 56", "0"),
        ("fill 0 b 50", "0"),
        ("fill 0 c 57", "EMSGSIZE"),
        ("fill 0 d 10", "0"),
        ("flush 0", "0"),
    ]);
    let heads = |n| "\0".repeat(n);
    // The first sub-buffer began before the callback was set, and the daemon began the last.
    let expected =
        [&heads(8), &"a".repeat(56), "HHHHHHHH", &"b".repeat(50), "HHHHHHHH", &"d".repeat(10), &heads(8)];
    assert_eq!(text(&mount.read("app/log0")), expected.concat());
    caller.expect(&[
        ("open 1 was 64 4 header=5", "EINVAL"),
        ("open 1 was 64 4 header=3", "0"),
        ("fill 1 a 60", "0"),
        ("fill 1 b 60", "0"),
        ("open 2 other 8192 2 header=257", "0"),
        ("shape 2", &shape_of_other(&mount)),
        ("open 3 small 8 2 header=8", "EINVAL"),
        ("outside 0", "EINVAL"),
    ]);
    assert_eq!(text(&mount.read("was0")), [&heads(4), &"a".repeat(60), "HHH\0", &"b".repeat(60)].concat());
    caller.end();
}

/// More than may be reserved is not reserved.
fn shape_of_other(mount: &Mount) -> String {
    let n = mount.stats("cpu").keys().filter(|name| name.ends_with(".produced")).count() - 1;
    format!("version 1 8192x2=16384 bufs {n} global 0 overwrite 1 header 0 name other 1")
}

#[test]
fn subbuf_start_must_not_write_and_takes_shared_buffers() {
    let mount = Mount::with_sequences(&["--channel=plain:subbuf-size=100:n-subbufs=2"]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/log 100 2 write", "0"),
        ("fill 0 a 70", "0"),
        ("fill 0 b 70", "0"),
        ("calls", "calls 2 padding 30 full 0 nested EDEADLK removed 0"),
        // No-overwrite mode, as its creator asked, whatever the callback returns.
        ("open 1 plain 100 2 admit", "0"),
        ("fill 1 a 70", "0"),
        ("fill 1 b 70", "0"),
        ("fill 1 c 70", "ENOSPC"),
    ]);
    assert_eq!(text(&mount.read("app/log0")), ["a".repeat(70), "b".repeat(70)].concat());
    assert_eq!(text(&mount.read("plain0")), ["a".repeat(70), "b".repeat(70)].concat());
    caller.end();
    let mount = Mount::new(&["--shared=never"]);
    let mut caller = self::caller(&mount);
    caller.expect(&[
        ("open 0 app/log 100 2 admit", "ENOTSUP"),
        ("open 0 app/log 100 2", "0"),
        ("full 0 0", "0"),
    ]);
    caller.end();
}

#[test]
fn create_buf_file_decides_name_and_scope() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("open 0 app/log 8192 2 global", "0"),
        ("shape 0", "version 1 8192x2=16384 bufs 1 global 1 overwrite 0 header 0 name app/log 1"),
        ("write 0 one", "0"),
        ("open 1 base 8192 2 name=another0 dir=some/where", "0"),
        ("write 1 two", "0"),
        ("open 2 base 8192 2 name=another", "ENOTSUP"),
        ("open 2 base 8192 2 none", "ECANCELED"),
        ("open 2 base 8192 2 dir=here", "0"),
        ("write 2 three", "0"),
        ("flush 0", "0"),
        ("flush 1", "0"),
        ("flush 2", "0"),
        ("close 0", "0"),
        ("calls", "calls 0 padding 0 full 0 nested 0 removed 1"),
        ("rmdir", "0"),
    ]);
    assert_eq!(text(&mount.read("app/log0")), "one");
    assert_eq!(text(&mount.read("some/where/another0")), "two");
    assert_eq!(text(&mount.read("here/base0")), "three");
    caller.end();
}

#[test]
fn threads_children_and_signal_handlers_write() {
    let mount = Mount::with_sequences(&[]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/log 65536 4", "0"),
        ("write 0 parent.", "0"),
        ("fork 0 child.", "0"),
        ("write 0 parent.", "0"),
        ("signal 0 handler.", "0"),
        ("fork 0 child.", "0"),
        ("close 0", "0"),
        ("fork 0 child.", "EBADF"),
    ]);
    assert_eq!(text(&mount.read("app/log0")), "parent.child.parent.handler.child.");
    caller.end();
    // Over the socket: a child makes its own connection.
    let mount = Mount::new(&["--shared=never"]);
    let mut caller = self::caller(&mount);
    caller.expect(&[
        ("open 0 app/log 65536 4", "0"),
        ("write 0 parent.", "0"),
        ("flush 0", "0"),
        ("fork 0 child.", "0"),
    ]);
    relayfs_tests::eventually("a child's message", || mount.stats("app/log")["total.written"] == 2);
    assert_eq!(text(&mount.read("app/log0")), "parent.child.");
    caller.end();
}

/// A forked child has a copy of its parent's reserved message, and does not write it again.
#[test]
fn message_reserved_before_fork_is_written_once() {
    for shared in ["group", "never"] {
        let mount = Mount::new(&["--shared", shared]);
        let mut caller = self::caller(&mount);
        caller.expect(&[
            ("open 0 app/log 65536 4", "0"),
            ("reserve 0 reserved.", "0"),
            ("fork 0 child.", "0"),
            ("commit 0", "0"),
            ("flush 0", "0"),
        ]);
        let messages = "child.reserved.".len() as u64;
        eventually("both messages", || mount.stats("app/log")["total.bytes"] >= messages);
        let mut found = mount.read("app/log0");
        found.extend(mount.read("app/log1"));
        let found = text(&found);
        assert!(found == "child.reserved." || found == "reserved.child.", "{shared}: {found}");
        caller.end();
    }
}

#[test]
fn calls_without_meaning_return_documented_errors() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[("switch", "ENOTSUP"), ("late", "ENOTSUP"), ("open 0 - 8192 2", "ENOTSUP")]);
    caller.end();
}

#[test]
fn library_exports_only_its_functions() {
    let library = libraries().join("librelay.so.0");
    let symbols = text(&stdout_of(tool("nm", "binutils").args(["-D", "--defined-only"]).arg(&library)));
    let header = std::fs::read_to_string(installed().join("usr/include/relay.h")).expect("the header");
    let symbols =
        symbols.lines().filter_map(|line| line.split(' ').nth(2)).filter(|name| *name != "RELAY_0.1");
    let symbols: Vec<&str> = symbols.collect();
    for symbol in &symbols {
        let name =
            symbol.strip_suffix("@@RELAY_0.1").unwrap_or_else(|| panic!("{symbol} has another version"));
        let is_declared = [" ", "*"].iter().any(|before| header.contains(&format!("{before}{name}(")));
        assert!(is_declared, "{name} is not in relay.h");
    }
    // Each declaration: a type, a name, and parameters. Functions that are inline are no symbols.
    let is_other =
        |line: &str| line.starts_with([' ', '\t', '#', '/', '*']) || line.starts_with("RELAY_INLINE");
    let declared = header.lines().filter(|line| !is_other(line) && line.contains('('));
    let declared: Vec<&str> = declared.collect();
    assert!(declared.len() > 10, "{declared:?}");
    assert_eq!(declared.len(), symbols.len(), "{declared:?} {symbols:?}");

    let dynamic = text(&stdout_of(tool("readelf", "binutils").arg("-d").arg(&library)));
    assert!(dynamic.contains("Library soname: [librelay.so.0]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    assert!(libraries().join("librelay.a").exists());
}

#[test]
fn header_compiles_as_every_c_and_cplusplus() {
    let include = installed().join("usr/include");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let source = dir.path().join("all.c");
    let program = "#include <relay.h>\n#include <relay.h>\n\
        static struct rchan *open5(void) { return relay_open(\"cpu\", NULL, 8192, 2, NULL); }\n\
        static struct rchan *open6(void) { return relay_open(\"cpu\", NULL, 8192, 2, NULL, NULL); }\n\
        static void log_all(struct rchan *chan)\n{\n#if RELAY_HAS_MACROS\n\
        if (chan) RELAY_ERROR(chan, \"text\"); else RELAY_WARN(chan, \"%d %s\", 1, \"text\");\n\
        RELAY_INFO(chan, \"text\"); RELAY_DEBUG(chan, \"text\"); RELAY_TRACE(chan, \"text\");\n\
        #else\n(void)chan;\n#endif\n}\n\
        int main(void) { log_all(NULL); return relay_close(open5()) | relay_close(open6()); }\n";
    std::fs::write(&source, program).expect("a source");
    let check = |compiler: &mut Command, standard: &str, language: &str| {
        compiler.args([
            &format!("-std={standard}"),
            "-pedantic",
            "-Wall",
            "-Wextra",
            "-Wshadow",
            "-Werror",
            "-fsyntax-only",
        ]);
        stdout_of(compiler.args(["-x", language]).arg("-I").arg(&include).arg(&source));
    };
    for standard in ["c89", "gnu89", "c99", "c11", "c17"] {
        check(&mut tool("cc", "gcc"), standard, "c");
    }
    for standard in ["c++98", "c++11", "c++20"] {
        check(&mut tool("g++", "g++"), standard, "c++");
    }
}

#[test]
fn pkg_config_finds_the_library() {
    let mount = Mount::new(&[]);
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    // A static program needs more libraries, which pkg-config lists too.
    let mut cc = tool("cc", "gcc");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = dir.path().join("hello");
    cc.arg("-o").arg(&program).arg(workspace().join("relay-producer/examples/hello.c"));
    cc.args(pkg_config(&["--cflags"])).arg(libraries().join("librelay.a"));
    stdout_of(cc.args(pkg_config(&["--libs-only-l", "--static"]).iter().filter(|arg| *arg != "-lrelay")));
    stdout_of(Command::new(program).arg("statically").env("RELAYFS", mount.point()));
    mount.poke("cpu", "flush");
    let all: String = (0..)
        .map(|n| format!("cpu{n}"))
        .take_while(|f| mount.path(f).exists())
        .map(|f| text(&mount.read(&f)))
        .collect();
    assert_eq!(all, "statically\n");
}

#[test]
fn linked_program_needs_no_rust() {
    let linked = Linked::compile("relay-producer/examples/hello.c", &[]);
    let needed = text(&stdout_of(tool("readelf", "binutils").arg("-d").arg(linked.path())));
    let needed: Vec<&str> = needed.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(
        needed.iter().all(|line| ["librelay.so.0", "libc.so"].iter().any(|name| line.contains(name))),
        "{needed:?}"
    );
}
