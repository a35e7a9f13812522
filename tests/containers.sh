#!/bin/sh
# packaging/containers/ in containers of podman: builds the image, runs it as its header says, and the services of compose.yaml
# with two programs and a user more, whose daemon is killed meanwhile; compares what the reader printed with what was written;
# and kubernetes.yaml, whose daemon is killed as well. It needs no registry: the base images are made of Debian's packages, and
# of the Rust toolchain that is installed. By hand and in tests/long.sh: it takes many minutes and a network. As root.
#
#   sh tests/containers.sh [ARCHIVE]      # with an image that podman save has written
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
. tests/fresh_root.sh
[ "$(id -u)" -eq 0 ] || fail "this takes root, for containers and mounts"
need podman podman
need catatonit catatonit
need runc runc
need debootstrap debootstrap
need_rust
need_fuse
install_missing
need_python yaml pyyaml
places="/srv/relay /srv/relay-socket /run/relayfs-mount /run/relayfs-socket"
for place in $places; do [ ! -e "$place" ] || fail "$place is there: this makes and removes it"; done

dir=$(mktemp -d)
# All that podman keeps is below the directory. The limits are some that this process has, which may be less than podman's.
cat >"$dir/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=32768:32768"]
[engine]
runtime = "runc"
END
export CONTAINERS_CONF="$dir/containers.conf" TMPDIR="$dir"
podman() { command podman --root "$dir/storage" --runroot "$dir/run" --log-level fatal "$@"; }
finish() {
    { podman pod rm --force --all --time 5 && podman rm --force --all --time 5; } >/dev/null 2>&1 || true
    for point in /srv/relay/mnt /srv/relay /run/relayfs-mount/relay /run/relayfs-mount "$dir/storage/overlay"; do
        umount -l "$point" 2>/dev/null || true
    done
    rm -rf /dev/shm/relayfs-0/srv-relay-mnt /dev/shm/relayfs-0/run-relayfs?x2dmount-relay
    rm -rf --one-file-system $places "$dir"
}
trap finish EXIT
trap 'exit 1' HUP INT PIPE TERM

# Waits until a command succeeds, at most a minute.
until_true() {
    n=0
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ "$n" -lt 600 ] || fail "not within a minute: $*"
        sleep 0.1
    done
}
healthy() { podman healthcheck run "$1"; }
make_image() {
    fresh_root "$dir" ca-certificates >&2
    tar -C "$dir/root" -c . | podman import - docker.io/library/debian:bookworm-slim
    chroot "$dir/root" apt-get install -y --no-install-recommends gcc make libc6-dev pkg-config >"$dir/log" 2>&1 ||
        fail "$(tail -n 20 "$dir/log")"
    cargo fetch --locked --quiet
    mkdir -p "$dir/root/usr/local/cargo"
    cp -a "$(rustc --print sysroot)/." "$dir/root/usr/local/"
    cp -a "${CARGO_HOME:-$HOME/.cargo}/registry" "$dir/root/usr/local/cargo/"
    tar -C "$dir/root" -c . | podman import --change ENV=CARGO_HOME=/usr/local/cargo - docker.io/library/rust:1-bookworm
    rm -rf --one-file-system "$dir/root"
    echo "== the image" >&2
    podman build --network host --format docker --quiet -f packaging/containers/Dockerfile -t relayfs .
}
[ $# -gt 0 ] || make_image >/dev/null
[ $# -eq 0 ] || podman tag "$(podman load --quiet --input "$1" | sed 's/^Loaded image: //')" localhost/relayfs

echo "== as the header of the Dockerfile says"
options=$(sed -n 's/^# *docker run --rm \(.*\) relayfs$/\1/p' packaging/containers/Dockerfile)
podman run --detach --network none --name alone $options relayfs >/dev/null
until_true healthy alone
podman exec alone sh -c 'relay-producer -c box --exec sh -c "echo working; kill -KILL \$\$" || [ $? = 137 ]' >/dev/null 2>&1
podman exec alone audience -c box -o cat >"$dir/said"
[ "$(sed -n 1p "$dir/said")" = working ] && grep -q 'killed by signal 9' "$dir/said" || fail "$(cat "$dir/said")"
podman stop --time 60 alone >/dev/null
[ "$(podman inspect --format '{{.State.ExitCode}}' alone)" = 0 ] || fail "SIGTERM does not end it in order"
podman rm alone >/dev/null

echo "== the services of compose.yaml"
sed -n '1,/^# Three/s/^#   //p' packaging/containers/compose.yaml | sh -eu
# Prints how podman runs a service, each word quoted, and fails at a field that this does not know.
service() {
    python3 - "$@" <<'END'
import json, shlex, sys, yaml
service = yaml.safe_load(open("packaging/containers/compose.yaml"))["services"][sys.argv[1]]
words = []
for key, value in service.items():
    match key:
        case "volumes":
            for v in value:
                words += ["-v", ":".join([v["source"], v["target"], *v.get("bind", {}).values()])]
        case "devices" | "cap_add" | "security_opt":
            words += [f"--{key.rstrip('s').replace('_', '-')}={one}" for one in value]
        case "environment": words += [f"--env={name}={text}" for name, text in value.items()]
        case "pid" | "restart": words += [f"--{key}={value}"]
        case "entrypoint": words += ["--entrypoint", json.dumps(value)]
        case "healthcheck": words += ["--no-healthcheck"]
        case "image" | "build" | "depends_on" | "command": pass
        case other: sys.exit(f"compose.yaml: {other} is not known here")
print(shlex.join([*words, "relayfs", *(sys.argv[2:] or service.get("command", []))]))
END
}
# run NAME WORDS: runs a container that has no network, by the words of a service.
run() { eval "podman run --detach --network none --name $1 $2" >/dev/null; }
run relayfsd "$(service relayfsd)"
until_true healthy relayfsd
run reader "$(service reader)"
# Two programs of one image, the second of another user in a user namespace.
lines() { echo "i=0; while [ \$i -lt 3000 ]; do i=\$((i + 1)); echo $1 \$i; sleep 0.01; done; exit 3"; }
run one "$(service app sh -c "$(lines one)")"
run two "--user 1000 --uidmap 0:200000:65536 $(service app sh -c "$(lines two)")"
is_written() { [ "$(podman logs one | wc -l)" -gt "$1" ]; }
for round in 1 2 3; do
    until_true is_written $((round * 500))
    podman kill relayfsd >/dev/null && podman start relayfsd >/dev/null
    until_true healthy relayfsd
done
[ "$(podman wait one two | tr -d '\n')" = 33 ] || fail "the commands did not exit as their programs"
ended() { [ "$(podman logs reader | grep -c 'exited with status 3')" = 2 ]; }
until_true ended
# The read that a daemon was answering when it was killed is answered again.
podman logs reader 2>/dev/null | awk '!seen[$0]++' >"$dir/read"
for name in one two; do
    seq -f "$name %g" 3000 >"$dir/written"
    sed -n "s/.* stdout: \($name \)/\1/p" "$dir/read" | cmp - "$dir/written" || fail "$name: not each line once, in order"
done
[ "$(grep -c ' sh\[[1-9][0-9]*\] stdout: ' "$dir/read")" = 6000 ] || fail "lines without their process: $(tail -n 3 "$dir/read")"
podman stop --time 60 relayfsd >/dev/null
! grep -q ' /srv/relay/mnt ' /proc/mounts || fail "the mount stays"
# A mount of theirs may be held for a moment by other namespaces of the machine.
until_true podman rm --force --all --time 5

echo "== kubernetes.yaml"
mkdir /run/relayfs-mount /run/relayfs-socket
mount --bind /run/relayfs-mount /run/relayfs-mount && mount --make-rshared /run/relayfs-mount
python3 - >"$dir/pods.yaml" <<'END'
import yaml
daemons, pod = yaml.safe_load_all(open("packaging/containers/kubernetes.yaml"))
template = daemons["spec"]["template"]
template.update(apiVersion="v1", kind="Pod", metadata={"name": "relayfsd", **template["metadata"]})
print(yaml.dump_all([template, pod]))
END
podman kube play --network none "$dir/pods.yaml" >/dev/null
followed() { podman logs relayfs-example-reader | grep -q stdout:; }
until_true followed
# The next daemon replaces the dead mount of one that was killed.
podman kill relayfsd-relayfsd >/dev/null
read_before=$(podman logs relayfs-example-reader | grep -c stdout:)
podman start relayfsd-relayfsd >/dev/null
continued() { [ "$(podman logs relayfs-example-reader | grep -c stdout:)" -gt $((read_before + 5)) ]; }
until_true continued
echo "image, services and pods work"
