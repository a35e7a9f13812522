#!/bin/sh
# The main job, end to end, on a fresh machine: builds relayfs, mounts it in a temporary directory, writes "Hello world"
# from every CPU, reads it back, and leaves nothing behind.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need taskset util-linux
need_rust
need_fuse
install_missing

echo "building (the first time takes a few minutes)"
cargo build --release --locked --quiet --bins --package relayfsd --package relay-producer --package audience || fail "relayfs cannot be built, see above"
PATH=$(target_dir)/release:$PATH

dir=$(mktemp -d)
RELAYFS=$dir/relay
export PATH RELAYFS
clean_up() {
    umount "$RELAYFS" 2>/dev/null || fusermount3 -u "$RELAYFS" 2>/dev/null || true
    rm -rf "$dir/seen" && rmdir "$RELAYFS" "$dir"
}
trap clean_up EXIT
trap 'exit 1' HUP INT PIPE TERM
mkdir "$RELAYFS"

show() {
    printf '$ %s\n' "$*"
}

# The CPUs we may run on: from 0-2,5 to 0 1 2 5.
cpus=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status | tr ',' '\n' | while IFS=- read -r first last; do
    seq "$first" "${last:-$first}"
done)
[ -n "$cpus" ] || fail "cannot tell which CPUs there are"

show relayfsd "$RELAYFS"
relayfsd "$RELAYFS" || fail "cannot mount, see above"

# greet GREETING: a process on each CPU sends it.
greet() {
    for cpu in $cpus; do
        show "echo \"$1 from CPU $cpu\" | taskset -c $cpu relay-producer"
        echo "$1 from CPU $cpu" | taskset -c "$cpu" relay-producer || fail "cannot write on CPU $cpu"
    done
}

# expect GREETING COMMAND...: the command prints it once for each CPU.
expect() {
    greeting=$1
    shift
    show "$*"
    "$@" >"$dir/seen" || fail "cannot read"
    cat "$dir/seen"
    for cpu in $cpus; do
        grep -qx "$greeting from CPU $cpu" "$dir/seen" || fail "the greeting from CPU $cpu did not arrive"
    done
}

greet "Hello world"
expect "Hello world" cat "$RELAYFS"/cpu*
greet "Hello again"
expect "Hello again" audience

show umount "$RELAYFS"
umount "$RELAYFS" 2>/dev/null || fusermount3 -u "$RELAYFS" || fail "cannot unmount $RELAYFS"
echo "It works. The programs are in $(target_dir)/release."
