//! Tools that map the files they read. A buffer's file refuses that with ENODEV, shared and private, as debugfs does.
//! Most tools then use read(2), and get each byte. The others report it, and have consumed nothing. None gets bytes
//! of the ring.

use relayfs_tests::lines::{Twins, assert_same, shell};
use relayfs_tests::{run, text, tool, workspace};

/// Fails unless all these tools are installed.
fn all_installed() {
    for (name, package) in [
        ("ag", "silversearcher-ag"),
        ("git", "git"),
        ("java", "openjdk-17-jdk-headless"),
        ("python3", "python3"),
        ("rg", "ripgrep"),
        ("zsh", "zsh"),
    ] {
        tool(name, package);
    }
}

fn java(how: &str) -> String {
    format!("java {}/tests/java/Copy.java {how} $F $OUT; cat $OUT", workspace().display())
}

/// A Python script that maps, and reads if that is refused.
const PYTHON: &str = r#"python3 -c '
import mmap, os, sys
fd = os.open(os.environ["F"], os.O_RDONLY)
for flags in mmap.MAP_SHARED, mmap.MAP_PRIVATE:
    try:
        sys.stdout.buffer.write(mmap.mmap(fd, os.fstat(fd).st_size, flags=flags, prot=mmap.PROT_READ)[:])
        break
    except OSError:
        pass
else:
    while block := os.read(fd, 1 << 20):
        sys.stdout.buffer.write(block)
'"#;

#[test]
fn tools_that_fall_back_get_every_byte() {
    all_installed();
    let scripts = [
        "rg 77 $F",
        "rg --mmap -n 77 $F",
        "rg --mmap -c '' $F",
        "rg --mmap -U 'a.b' $F || true",
        "ag --nommap 77 $F",
        "zsh -fc 'print -rn -- \"$(<$F)\"'",
        PYTHON,
    ];
    let java = ["transfer-to-stream", "copy", "bytes", "streams"].map(java);
    for script in scripts.into_iter().chain(java.iter().map(String::as_str)) {
        let twins = Twins::medium();
        twins.compare(script);
        assert!(twins.mount.read("cpu0").is_empty(), "{script}: read to its end");
    }
    // git reads files that fit its memory.
    Twins::small().compare("git hash-object $F");
}

#[test]
fn tools_without_fallback_report_it_and_consume_nothing() {
    all_installed();
    let twins = Twins::medium();
    let java = ["transfer-to-file", "transfer-from-file", "map"].map(java);
    let scripts = ["ag 77 $F", "git hash-object $F", "git hash-object --stdin < $F"];
    for script in scripts.into_iter().chain(java.iter().map(String::as_str)) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = shell(script);
        let output = run(command.env("F", twins.mount.path("cpu0")).env("OUT", dir.path().join("out")));
        assert_eq!(text(&output.stdout), "", "{script}");
        assert!(text(&output.stderr).contains("No such device"), "{script}: {}", text(&output.stderr));
    }
    // This one prints nothing.
    let mut mapfile = shell("zsh -fc 'zmodload zsh/mapfile; print -rn -- \"$mapfile[$F]\"'");
    let output = run(mapfile.env("F", twins.mount.path("cpu0")));
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    assert_same("what is unread", &twins.mount.read("cpu0"), &twins.content);
}
