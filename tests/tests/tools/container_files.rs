//! `packaging/containers/`: what its files start is run, in namespaces with the volumes and the propagation of mounts that they
//! name. The tests have no docker and no cluster.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use relayfs_tests::pages::{EVENTUALLY, lines};
use relayfs_tests::{private_shell, programs, run_with_input, stdout_of, text, tool, workspace};

/// Reads a file of the directory.
#[track_caller]
fn file(name: &str) -> String {
    let path: PathBuf = workspace().join("packaging/containers").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns what stands behind a keyword of the Dockerfile.
#[track_caller]
fn instruction<'a>(dockerfile: &'a str, keyword: &str) -> &'a str {
    let mut found = dockerfile.lines().filter_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '));
    let first = found.next().unwrap_or_else(|| panic!("no {keyword}"));
    assert_eq!(found.next(), None, "{keyword} once");
    first
}

/// Returns the words of an instruction's list, for a shell.
#[track_caller]
fn words(list: &str) -> String {
    let words: Vec<String> = serde_json::from_str(list).unwrap_or_else(|error| panic!("{list}: {error}"));
    words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
}

/// Returns the image's command, and its check of health.
fn image() -> (String, String, String) {
    let dockerfile = file("Dockerfile");
    let health = instruction(&dockerfile, "HEALTHCHECK").split_once("CMD ").expect("a command").1;
    let of = |keyword| words(instruction(&dockerfile, keyword));
    (of("ENTRYPOINT"), of("CMD"), words(health))
}

/// Has a program in Python check a file, and returns what the program prints: a function of the shell for each container.
#[track_caller]
fn containers(program: &str, file: &str) -> String {
    let mut python = tool("python3", "python3");
    let output = run_with_input(python.args(["-c", &format!("{COMMON}\n{program}")]), file.as_bytes());
    assert!(output.status.success(), "{}(without yaml: pip install pyyaml)", text(&output.stderr));
    text(&output.stdout)
}

/// A command that runs a script in private namespaces, with the project's programs.
fn in_private(script: &str) -> Command {
    let start = "PATH=$PROGRAMS:$PATH; mount -t tmpfs tmpfs /mnt; cd /mnt";
    let mut command = private_shell(&format!("{EVENTUALLY}\n{start}\n{script}"));
    command.env("PROGRAMS", programs()).env("LC_ALL", "C.UTF-8").env_remove("RELAYFS");
    command
}

#[test]
fn image_mounts_is_healthy_and_ends_in_order() {
    let dockerfile = file("Dockerfile");
    let (entry, command, health) = image();
    assert!(dockerfile.contains(" && mkdir -p /mnt/relay && "), "{dockerfile}");
    assert_eq!(instruction(&dockerfile, "STOPSIGNAL"), "SIGTERM");
    let script = format!(
        "mkdir -p /mnt/relay
        if {health} 2>/dev/null; then exit 9; fi
        {entry} {command} &
        eventually {health}
        echo kept | relay-producer -c box
        audience -c box --snapshot -o cat
        kill -TERM $!
        wait $!
        ! grep -q ' /mnt/relay ' /proc/mounts"
    );
    assert_eq!(text(&stdout_of(&mut in_private(&script))), "kept\n");
}

#[test]
fn compose_shares_a_mount() {
    let compose = file("compose.yaml");
    // What the file says to do first.
    let head = compose.split_once("# Three things").expect("what comes behind it").0;
    let first: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    assert_eq!(first.len(), 3, "{first:?}");
    let (entry, _, health) = image();
    let script = format!(
        "{}
        mount -t tmpfs tmpfs /srv
        {}
        relayfsd {entry} &
        eventually in_relayfsd {health}
        app >/dev/null &
        mkfifo said
        reader >said &
        timeout 100 sed -u '/stdout: /q' said",
        containers(COMPOSE, &compose),
        first.join("\n"),
    );
    let said = lines(&stdout_of(&mut in_private(&script)));
    assert!(said[0].contains(" sh[") && said[0].contains("] stdout: "), "{said:#?}");
}

#[test]
fn daemon_of_a_node_serves_a_pod() {
    tool("pgrep", "procps");
    let script = format!(
        "{}
        mount --make-rshared /run
        mkdir /run/relayfs-mount /run/relayfs-socket
        relayfsd &
        eventually ready
        # A daemon that is killed leaves a dead mount, and the container is started again.
        kill -KILL $(pgrep -x relayfsd)
        wait $! || :
        if cat /run/relayfs-mount/relay/.relay/version 2>/dev/null; then exit 9; fi
        relayfsd &
        eventually ready
        app >/dev/null &
        mkfifo said
        reader >said &
        timeout 100 sed -u '/stdout: /q' said",
        containers(KUBERNETES, &file("kubernetes.yaml")),
    );
    let said = lines(&stdout_of(&mut in_private(&script)));
    assert!(said[0].contains(" sh[") && said[0].contains("] stdout: "), "{said:#?}");
}

/// Prints functions of the shell that run commands in a mount namespace with this propagation.
const COMMON: &str = r#"
import shlex, sys, yaml

def known(found, *fields):
    assert set(found) <= set(fields), set(found) - set(fields)
    return found

def function(name, propagation, command, environment={}):
    variables = [f"{key}={value}" for key, value in environment.items()]
    words = ["unshare", "--mount", "--propagation", propagation, "env", *variables, *command]
    print(name + "() { " + shlex.join(words) + ' "$@"; }')
"#;

/// The services of compose.yaml. `relayfsd` has the image's entry point, which the test adds.
const COMPOSE: &str = r#"
services = known(yaml.safe_load(sys.stdin), "services")["services"]
propagations = {"rshared": "unchanged", "rslave": "slave"}
for name, service in services.items():
    known(service, "image", "build", "command", "entrypoint", "devices", "cap_add", "security_opt", "volumes",
          "restart", "depends_on", "healthcheck", "environment", "pid")
    assert service["image"] == "relayfs"
    mount, *others = service["volumes"]
    for volume in service["volumes"]:
        known(volume, "type", "source", "target", "bind")
        assert volume["type"] == "bind" and volume["source"] == volume["target"]
    propagation = propagations[mount["bind"]["propagation"]]
    assert mount["source"] == "/srv/relay"
    others = [volume["source"] for volume in others]
    if name == "relayfsd":
        assert others == ["/srv/relay-socket", "/dev/shm"]
        assert service["devices"] == ["/dev/fuse"] and service["pid"] == "host" and service["cap_add"] == ["SYS_ADMIN"]
        # Behind the words of the entry point.
        words = shlex.join(service["command"])
        print(f'relayfsd() {{ unshare --mount --propagation {propagation} "$@" {words}; }}')
        function("in_relayfsd", propagation, [], service["environment"])
    else:
        assert others in ([], ["/srv/relay-socket"])
        # The image's check of health is about a daemon.
        assert service["healthcheck"] == {"disable": True} and service["depends_on"] == ["relayfsd"]
        function(name, propagation, service["entrypoint"] + service.get("command", []), service.get("environment", {}))
"#;

/// The containers of kubernetes.yaml, and the probe of the daemon's.
const KUBERNETES: &str = r#"
propagations = {"Bidirectional": "unchanged", "HostToContainer": "slave"}
daemons, pod = yaml.safe_load_all(sys.stdin)
assert (daemons["apiVersion"], daemons["kind"]) == ("apps/v1", "DaemonSet")
assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
labels = daemons["spec"]["template"]["metadata"]["labels"]
assert daemons["spec"]["selector"] == {"matchLabels": labels}
for spec in daemons["spec"]["template"]["spec"], pod["spec"]:
    known(spec, "containers", "volumes", "hostPID")
    # The daemon sees the processes that write.
    assert spec.get("hostPID", False) == (spec is not pod["spec"])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        known(container, "name", "image", "args", "command", "securityContext", "readinessProbe", "volumeMounts")
        assert container["image"] == "relayfs"
        places = {}
        for mount in container["volumeMounts"]:
            known(mount, "name", "mountPath", "mountPropagation")
            volume = volumes[mount["name"]]
            assert volume.get("hostPath", {}).get("path", mount["mountPath"]) == mount["mountPath"]
            places[mount["name"]] = mount
        assert "socket" in places
        propagation = propagations[places["mount"]["mountPropagation"]]
        function(container["name"], propagation, container["command"] + container.get("args", []))
        if "readinessProbe" in container:
            assert container["securityContext"] == {"privileged": True}
            # They outlive the pod.
            assert volumes["buffers"]["hostPath"]["path"] == "/dev/shm"
            function("ready", propagation, known(container["readinessProbe"], "exec")["exec"]["command"])
"#;
