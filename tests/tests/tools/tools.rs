//! Ordinary tools on a buffer's file do the same as on an ordinary file.

use std::fs::{self, File};
use std::process::Command;

use relay_producer::{BatchOptions, Wait};
use relayfs_tests::lines::{Twins, assert_same, shell};
use relayfs_tests::{Mount, Process, run, stdout_of, text, tool};

/// Fails if a tool is missing that is not part of every Debian.
#[track_caller]
fn all_installed() {
    for (name, package) in
        [("busybox", "busybox"), ("less", "less"), ("python3", "python3"), ("bash", "bash")]
    {
        tool(name, package);
    }
}

/// A tool that reads a file to its end gets each byte, no padding, and nothing twice.
#[test]
fn tools_that_read_everything_get_every_byte() {
    all_installed();
    let scripts = [
        "cat $F",
        "cat < $F",
        "cat $F | cat",
        "cat $F > $OUT; cat $OUT",
        "busybox cat $F",
        "busybox cat $F | cat",
        "busybox cat < $F > $OUT; cat $OUT",
        "cp $F $OUT; cat $OUT",
        "cp --sparse=always $F $OUT; cat $OUT",
        "busybox cp $F $OUT; cat $OUT",
        "install -m 600 $F $OUT; cat $OUT",
        "tee $OUT < $F; cat $OUT",
        "busybox tee $OUT < $F; cat $OUT",
        "less $F | cat",
        "less < $F | cat",
        "split -b 100000 $F $OUT.; cat $OUT.*",
        "split -l 7000 $F $OUT.; cat $OUT.*",
        "grep '' $F",
        "grep -c 77 $F",
        "grep -n ' abc' $F",
        "busybox grep '' $F",
        "wc < $F | tr -s ' '",
        "wc -l < $F",
        "busybox wc < $F | tr -s ' '",
        "busybox wc -c < $F",
        "tail -n +1 $F",
        "tail -c +1 $F",
        "head -c 1G $F",
        "head -n 1000000 $F",
        "sed '' $F",
        "awk '{print}' $F",
        "sort -r $F",
        "md5sum < $F",
        "gzip -c $F | gzip -dc",
        "cmp $F $COPY",
        "od -c $F",
    ];
    let mut twins = Twins::large();
    let others = ["a message of", "nobody's business"].map(str::as_bytes);
    twins.mount.send_to("app/log", 0, &others);
    for (i, script) in scripts.into_iter().enumerate() {
        if i > 0 {
            twins.refill(i * 30_000..(i + 1) * 30_000);
        }
        twins.compare(script);
        assert_eq!(text(&twins.mount.read("cpu0")), "", "{script} left something unread");
    }
    assert_eq!(twins.mount.read("app/log0"), others.concat(), "other files are not touched");
    let stats = twins.mount.stats("cpu");
    assert_eq!(stats["cpu0.read_bytes"], stats["cpu0.bytes"], "nothing was skipped");
}

/// Blocks of any size, from one byte on.
#[test]
fn dd_gets_every_byte_with_blocks_of_any_size() {
    let mut twins = Twins::small();
    for bs in ["1", "7", "700", "1000"] {
        twins.compare(&format!("dd bs={bs} if=$F"));
        twins.refill(0..100);
    }
    let mut twins = Twins::large();
    for bs in ["512", "4096", "5000", "64K", "128K", "1M", "4M"] {
        twins.compare(&format!("dd bs={bs} if=$F"));
        twins.refill(0..30_000);
    }
}

/// A tool that asks for a part gets that part: positions in the file are positions in the stream since its creation.
#[test]
fn tools_that_ask_for_a_part_get_it() {
    all_installed();
    let scripts = [
        "head -n 1 $F",
        "head -n 77 $F",
        "head -c 10 $F",
        "head -c 3000 $F",
        "busybox head -n 77 $F",
        "busybox head -c 3000 $F",
        "tail -c 10 $F",
        "tail -c 3000 $F",
        "tail -c +3000 $F",
        "tail -n +77 $F",
        "busybox tail -c 10 $F",
        "busybox tail -n +77 $F",
        "dd bs=10 count=7 if=$F",
        "dd bs=100 skip=3 count=7 if=$F",
        "dd bs=1000 skip=3 if=$F",
        "dd bs=4M skip=3000 iflag=skip_bytes if=$F",
        "busybox dd bs=100 skip=3 count=7 if=$F",
        "od -A d -j 3000 -N 100 $F",
        "cmp -i 3000 -n 1000 $F $COPY",
        "grep -m 1 77 $F",
        "busybox grep -m 1 77 $F",
        "grep -q 77 $F",
        "sed 77q $F",
        "sed -n '/77/{p;q}' $F",
        "wc -c < $F",
        "stat -c %s $F",
        "split -n l/3 $F $OUT.; cat $OUT.*",
        "tar -C / -cf - ${F#/} | tar -xOf -",
    ];
    for script in scripts {
        Twins::small().compare(script);
        Twins::medium().compare(script);
    }
}

/// A tool that wants the end seeks there and then backwards, block by block: the file keeps what it has skipped.
#[test]
fn tools_that_ask_for_the_end_get_it() {
    all_installed();
    let scripts = [
        "tail $F",
        "tail -n 1 $F",
        "tail -n 99 $F",
        "tail -n 99 < $F",
        "tail -n 7000 $F",
        "tail -n 1000000 $F",
        "busybox tail -n 1 $F",
        "busybox tail -n 99 $F",
        "busybox tail -n 7000 $F",
        "head -n -1 $F",
        "head -n -99 $F",
        "head -c -10 $F",
        "tac $F",
        "sort $F | tail -n 1",
        "(tail -n 3; cat) < $F",
    ];
    for script in scripts {
        Twins::small().compare(script);
        Twins::medium().compare(script);
    }
    for script in ["tail $F", "tail -n 7000 $F", "busybox tail -n 40000 $F", "cat $F | tail -n 40000"] {
        Twins::large().compare(script);
    }
}

/// Skipped data is not kept for ever. A tool that reads it later gets an error, not the end of the file.
#[test]
fn looking_back_too_far_is_an_error() {
    for script in ["tail -n 40000 $F", "tac $F", "head -n -40000 $F"] {
        let twins = Twins::large();
        let output = run(shell(script).env("F", twins.mount.path("cpu0")));
        assert!(!output.status.success(), "{script} succeeded");
        assert!(text(&output.stderr).contains("Illegal seek"), "{script}: {}", text(&output.stderr));
    }
}

/// A file that was read before has positions without data.
#[test]
fn end_of_partly_read_file_can_be_read() {
    all_installed();
    for script in ["tail $F", "tail -n 99 $F", "tail -c 100 $F", "busybox tail $F", "cat $F | tail -n 1000"] {
        let mut twins = Twins::large();
        twins.compare("cat $F");
        twins.refill(0..700);
        twins.compare(script);
    }
}

/// A program gets the data that the one before it left in their shared open file, even if that one has read ahead.
#[test]
fn tools_that_share_an_open_file_lose_nothing_between_them() {
    all_installed();
    let scripts = [
        "(head -n 1; cat) < $F",
        "(head -n 1; echo; head -n 50; echo; cat) < $F",
        "(head -c 10; cat) < $F",
        "(busybox head -n 1; cat) < $F",
        "(read x; echo \"$x\"; cat) < $F",
        "bash -c 'read x; echo \"$x\"; cat' < $F",
        "busybox sh -c 'read x; echo \"$x\"; cat' < $F",
        "(grep -m 1 77; cat) < $F",
        "(grep -q 77; cat) < $F",
        "(sed 1q; cat) < $F",
        "(dd bs=10 count=1; cat) < $F",
        "(dd bs=1 count=10; busybox cat) < $F",
        "(head -n 1; dd bs=4M) < $F",
        "(cat; cat) < $F",
    ];
    for script in scripts {
        let mut twins = Twins::small();
        twins.compare(script);
        twins.refill(100..200);
        twins.compare(script);
        Twins::large().compare(script);
    }
}

/// `while read`, byte by byte, or in blocks from which the shell seeks back.
#[test]
fn shell_that_reads_line_by_line_gets_every_line() {
    all_installed();
    for shell in ["dash", "bash"] {
        let script =
            format!("{shell} -c 'while IFS= read -r line; do printf \"%s\\n\" \"$line\"; done' < $F");
        let mut twins = Twins::small();
        twins.compare(&script);
        twins.refill(100..200);
        twins.compare(&script);
    }
}

/// Python reads in blocks of the size that the file asks for, and copies with sendfile(2) if possible.
#[test]
fn python_gets_every_byte() {
    let scripts = [
        "sys.stdout.write(open(F).read())",
        "sys.stdout.buffer.write(open(F, 'rb').read())",
        "sys.stdout.buffer.write(open(F, 'rb', buffering=0).read())",
        "[sys.stdout.write(line) for line in open(F)]",
        "f = open(F); sys.stdout.write(f.readline() + f.readline()); f.seek(0); sys.stdout.write(f.read())",
        "f = open(F, 'rb'); sys.stdout.buffer.write(f.readline() + f.read(7) + f.read())",
        "shutil.copyfile(F, OUT); sys.stdout.write(open(OUT).read())",
        "shutil.copy(F, OUT); sys.stdout.write(open(OUT).read())",
        "shutil.copyfileobj(open(F, 'rb'), sys.stdout.buffer)",
        "sys.stdout.write(pathlib.Path(F).read_text())",
        "sys.stdout.write(''.join(fileinput.input(F)))",
        "sys.stdout.write(subprocess.check_output('cat', stdin=open(F), text=True))",
    ];
    let python = tool("python3", "python3");
    let python = python.get_program().display();
    let import =
        "import fileinput, os, pathlib, shutil, subprocess, sys; F, OUT = os.environ['F'], os.environ['OUT']";
    let mut twins = Twins::large();
    for script in scripts {
        twins.compare(&format!("{python} -c \"{import}; {script}\""));
        twins.refill(0..700);
    }
}

/// Positions in Python are the file's: pread(2) skips the data before, and can go back a little.
#[test]
fn python_reads_at_positions() {
    let twins = Twins::large();
    let script = "
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
content = open(sys.argv[2], 'rb').read()
assert os.pread(fd, 100, 0) == content[:100]
assert os.pread(fd, 100, 0) == content[:100]
assert os.pread(fd, 100, 50) == content[50:100], 'as far as it has read'
assert os.pread(fd, 100, 300000) == content[300000:300100]
assert os.pread(fd, 100, 200000) == content[200000:200100], 'passed over, and kept'
assert os.lseek(fd, 0, os.SEEK_CUR) == 0, 'pread moves nothing'
assert os.lseek(fd, -100, os.SEEK_END) == len(content) - 100
assert os.read(fd, 1000) == content[-100:]
assert os.read(fd, 1000) == b''
assert os.lseek(fd, 0, os.SEEK_CUR) == len(content) == os.fstat(fd).st_size
";
    let mut python = tool("python3", "python3");
    python.args(["-c", script]).arg(twins.mount.path("cpu0")).arg(twins.copy());
    stdout_of(&mut python);
    let stats = twins.mount.stats("cpu");
    let bytes = stats["cpu0.bytes"];
    assert_eq!(stats["cpu0.read_bytes"], 300, "100 from the start, 100 in the middle, 100 at the end");
    assert_eq!(stats["cpu0.discarded_bytes"], bytes - 300, "what was passed over is counted");
}

/// In overwrite mode, skipped data is copied before it is known to be whole.
#[test]
fn tools_do_the_same_in_overwrite_mode() {
    let scripts = [
        "cat $F",
        "dd bs=1000 if=$F",
        "dd bs=1000 skip=77 if=$F",
        "head -n 99 $F",
        "tail -n 99 $F",
        "tail -n 7000 $F",
        "tail -c 3000 $F",
        "tail -n +99 $F",
        "(head -n 1; tail -n 99; cat) < $F",
    ];
    for script in scripts {
        Twins::overwriting().compare(script);
    }
}

/// Several programs that read one file at the same time share its bytes: each is in one of their outputs, once and in
/// order. Lines are whole, because blocks and sub-buffers hold whole numbers of lines.
#[test]
fn concurrent_readers_share_the_bytes_between_them() {
    let mount = Mount::new(&["--subbuf-size", "6500", "--n-subbufs", "16"]);
    let lines: Vec<String> = (0..20_000).map(|i| format!("{i:063}\n")).collect();
    let cats =
        ["cat $0; :", "busybox cat $0; :", "dd bs=64 if=$0 status=none", "dd bs=64K if=$0 status=none"];
    tool("busybox", "busybox");
    let outs: Vec<_> = (0..cats.len()).map(|i| mount.beside(&format!("out{i}"))).collect();
    let mut readers: Vec<Process> = cats
        .iter()
        .zip(&outs)
        .map(|(cat, out)| {
            // Again and again until the file `end` exists, and then once more.
            let script = format!("while [ ! -e $1 ]; do {cat}; done; {cat}");
            let mut shell = Command::new("sh");
            shell.args(["-euc", &script]).arg(mount.path("cpu0")).arg(mount.beside("end"));
            Process::start(shell.stdout(File::create(out).unwrap()))
        })
        .collect();
    let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
    let counts = mount.channel("cpu").write_batch(&lines, options).unwrap();
    assert_eq!(counts.written, lines.len() as u64);
    fs::write(mount.beside("end"), "").unwrap();
    readers.iter_mut().for_each(|reader| assert!(reader.wait().success()));
    let mut all = Vec::new();
    for out in &outs {
        let got = fs::read_to_string(out).unwrap();
        let got: Vec<String> = got.split_inclusive('\n').map(str::to_owned).collect();
        assert!(got.is_sorted(), "{} is out of order", out.display());
        all.extend(got);
    }
    all.sort();
    assert_same("all together", all.concat().as_bytes(), lines.concat().as_bytes());
}

/// A pager at a terminal: the first page, the last one, back a page, the end.
#[test]
fn less_pages_at_a_terminal() {
    tool("less", "less");
    let script = "
import fcntl, os, pty, select, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(TERM='xterm', LESS='', LESSSECURE='1')
    os.execvp('less', ['less', sys.argv[1]])
def expect(wanted):
    seen = b''
    while wanted.encode() not in seen:
        assert select.select([terminal], [], [], 60)[0], f'no {wanted} in {seen}'
        seen += os.read(terminal, 4096)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
for keys, wanted in zip(['', ' ', 'G', 'b', 'q'], sys.argv[2:]):
    os.write(terminal, keys.encode())
    expect(wanted)
os.write(terminal, b'q')
assert os.waitpid(pid, 0)[1] == 0
";
    let twins = Twins::medium();
    let mut python = tool("python3", "python3");
    python.args(["-c", script]).arg(twins.mount.path("cpu0"));
    stdout_of(python.args(["000010 ", "000030 ", "019999 ", "019960 "]));
}
