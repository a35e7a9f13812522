//! `docs/containers.md`: processes in namespaces of their own that see the socket's directory alone.

use std::collections::BTreeSet;
use std::fs;

use relayfs_tests::pages::{EVENTUALLY, Page, START, content, lines, on_mnt_relay};
use relayfs_tests::{private_shell, programs, run_with_input, stdout_of, text, tool};

/// What stands before a program in the sandbox of the page, up to the last option.
fn sandbox(page: &Page) -> String {
    let block = page.block("bubblewrap", "sh");
    let (sandbox, program) = block.rsplit_once("relay-producer").expect("the program");
    assert!(sandbox.ends_with("socket \\\n    ") && program.contains("--exec"), "{block}");
    // The test's programs are elsewhere. They are in the sandbox as the system's own.
    sandbox.replace("--ro-bind /usr /usr", "--ro-bind /usr /usr --ro-bind \"$PROGRAMS\" /usr/local/bin")
}

#[test]
fn page_has_no_other_blocks() {
    let page = Page::open("containers.md");
    page.has_only(&[
        ("Containers", ""),
        ("docker and podman", "text"),
        ("bubblewrap", "sh"),
        ("bubblewrap", "text"),
        ("Kubernetes", "yaml"),
    ]);
    assert_eq!(page.block("Containers", ""), START);
}

#[test]
fn process_in_its_own_namespaces_has_its_last_words_outside() {
    let page = Page::open("containers.md");
    let dir = tempfile::tempdir().expect("a temporary directory");
    tool("bwrap", "bubblewrap");
    let (sandbox, block) = (sandbox(&page), page.block("bubblewrap", "sh"));
    let program = &block[block.rfind("relay-producer").expect("the program")..];
    // It sees neither the mount nor the processes outside, and has the namespaces that the page says.
    let script = format!(
        "for of in mnt pid net ipc user; do readlink /proc/self/ns/$of; done >outside
        {sandbox} sh -c 'for of in mnt pid net ipc user; do readlink /proc/self/ns/$of; done' >inside
        test 5 = $(cat inside outside | sort -u | wc -l) && exit 9
        test 10 = $(cat inside outside | sort -u | wc -l)
        {sandbox} sh -c 'ls / /run; test ! -e /mnt; test ! -e /dev/fuse' >&2
        {sandbox} relay-producer -v -c app/log --level info inside >&2
        {sandbox} {program} >&2 || test $? = 137
        records_until 'status.:9'"
    );
    let output = relayfs_tests::run(&mut on_mnt_relay(dir.path(), &script));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = lines(&output.stdout);
    assert_eq!(content(&found[0]), r#""level":"INFO","event":"log","message":"inside"}"#);
    assert_eq!(content(&found[1]), r#""event":"output","stream":"stdout","message":"from a container"}"#);
    assert!(found[..2].iter().all(|line| line.contains(r#""command":""#)), "{found:#?}");
    assert!(found[2].contains(r#""command":"sh""#) && found[2].contains("kill"), "{found:#?}");
    assert_eq!(found.len(), 3, "{found:#?}");
    // Its number is that outside, also in the record of the end, which the command has written inside.
    let pids: Vec<&str> = found[1..].iter().flat_map(|line| line.split("\"pid\":").skip(1)).collect();
    let pids: Vec<&str> = pids.iter().filter_map(|rest| rest.split([',', '}']).next()).collect();
    assert!(pids.len() == 3 && pids.iter().all(|pid| *pid == pids[0]), "{found:#?}");
}

/// Containers of one image have the same numbers for their processes.
#[test]
fn processes_of_several_containers_have_their_names() {
    let page = Page::open("containers.md");
    let dir = tempfile::tempdir().expect("a temporary directory");
    tool("bwrap", "bubblewrap");
    let sandbox = sandbox(&page);
    let script = format!(
        "for way in '' '--transport socket'; do for n in 1 2; do
            {sandbox} relay-producer -c app/log $way --level info alone >&2
            {sandbox} relay-producer -c app/log $way --exec sh -c 'echo by the command; exit 7' >&2 || test $? = 7
        done; done
        {sandbox} relay-producer -c app/log last
        records_until last"
    );
    let output = relayfs_tests::run(&mut on_mnt_relay(dir.path(), &script));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = lines(&output.stdout);
    let number = |line: &str, key: &str| -> String {
        let behind = line.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {found:#?}")).1;
        behind.split([',', '}']).next().expect("a number").to_owned()
    };
    // A message, a line, an end; each is of one process, which no other one is.
    assert_eq!(found.len(), 13, "{found:#?}");
    let pids: Vec<String> = found.iter().map(|line| number(line, "pid")).collect();
    assert_eq!(pids, found.iter().map(|line| number(line, "tid")).collect::<Vec<_>>());
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 9, "{found:#?}");
    let commands: Vec<String> = found.iter().map(|line| number(line, "command")).collect();
    for of in commands[..12].chunks(3) {
        assert_eq!(of, ["\"relay-producer\"", "\"sh\"", "\"sh\""]);
    }
}

/// The commands of the manifest's containers, run with its volumes in the places that it names.
#[test]
fn pod_prints_the_records_of_its_application() {
    let page = Page::open("containers.md");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut python = tool("python3", "python3");
    let output = run_with_input(python.args(["-c", FIELDS]), page.block("Kubernetes", "yaml").as_bytes());
    assert!(output.status.success(), "{}(without yaml: pip install pyyaml)", text(&output.stderr));
    let said = text(&output.stdout);
    let [side_car, probe, application] = said.split('\0').collect::<Vec<_>>()[..] else { panic!("{said}") };
    fs::write(dir.path().join("side-car"), side_car).expect("a script");
    let sandbox = sandbox(&page).replace("/run/relayfs/mnt-relay", "/run/relayfs");
    let script = format!(
        "{EVENTUALLY}
        PATH=$PROGRAMS:$PATH
        mount -t tmpfs tmpfs /mnt
        mkdir /run/relayfs
        cd \"$DIR\"
        mkfifo records
        # The reader comes later.
        exec 3<>records
        sh -ec \"$(cat side-car)\" >records &
        eventually {probe}
        printf '#!/bin/sh\\necho served; kill -SEGV $$\\n' >app
        chmod +x app
        {sandbox} --ro-bind \"$DIR/app\" /app --setenv PATH /:/usr/local/bin:/usr/bin {application} >&2 || :
        timeout 100 sed -u '/status.:11/q' records"
    );
    let found = lines(&stdout_of(private_shell(&script).env("PROGRAMS", programs()).env("DIR", dir.path())));
    assert_eq!(content(&found[0]), r#""event":"output","stream":"stdout","message":"served"}"#);
    assert_eq!(found.len(), 2, "{found:#?}");
}

/// Checks that each field of the manifest is one that its kind has, and that what the containers mount is there. Prints the
/// side car's script, its probe, and the application's command.
const FIELDS: &str = r#"
import shlex, sys, yaml

KNOWN = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"shareProcessNamespace", "volumes", "initContainers", "containers"},
    "volume": {"name", "emptyDir"},
    "container": {"name", "image", "restartPolicy", "securityContext", "command", "args", "startupProbe", "env", "volumeMounts"},
    "mount": {"name", "mountPath"},
}

def known(what, found):
    assert set(found) <= KNOWN[what], (what, set(found) - KNOWN[what])
    return found

pod = known("", yaml.safe_load(sys.stdin))
assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
spec = known("spec", pod["spec"])
volumes = {known("volume", volume)["name"]: volume["emptyDir"] for volume in spec["volumes"]}
[side_car], [app] = spec["initContainers"], spec["containers"]
for container in side_car, app:
    known("container", container)
    for mount in container["volumeMounts"]:
        assert known("mount", mount)["name"] in volumes, mount
places = {mount["mountPath"]: mount["name"] for mount in side_car["volumeMounts"]}
assert volumes[places["/dev/shm"]]["medium"] == "Memory"
[socket] = app["volumeMounts"]
assert places[socket["mountPath"]] == socket["name"] and "securityContext" not in app
assert app["env"] == [{"name": "RELAYFS", "value": socket["mountPath"] + "/socket"}]
assert side_car["restartPolicy"] == "Always" and side_car["command"] == ["sh", "-ec"]
[script] = side_car["args"]
probe = shlex.join(side_car["startupProbe"]["exec"]["command"])
print(script, probe, shlex.join(app["command"]), sep="\0", end="")
"#;
