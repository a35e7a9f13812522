#!/bin/sh
# Measures what relayfs does, beside memcpy, pipes, sockets, tmpfs, ftrace, LTTng-UST, journald and loggers in the same run, and
# prints tables. Judges nothing; run it as root, on a machine that does nothing else. Takes about five minutes and a build.
#
# bench.sh [message|libraries|socket|record|threads|stream|reading|lines|daemon|many|timed|recording|forward|frontends|operator|python|instructions]...: all of them, or these. ROUNDS=N: so many rounds instead of 7.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need babeltrace2 babeltrace2
need journalctl systemd
need lttng lttng-tools
need lttng-gen-tp liblttng-ust-dev
need taskset util-linux
need tmux tmux
need unshare util-linux
need nats-server nats-server
need objdump binutils
need make make
need musl-gcc musl-tools
need pkg-config pkg-config
need python3 python3
need_rust
need_fuse
install_missing
[ "$(id -u)" -eq 0 ] || fail "run it as root: it mounts and unmounts"
# The kernel's own, which most systems mount at boot.
if [ ! -e /sys/kernel/tracing/trace_marker ] && mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; then
    trap 'umount /sys/kernel/tracing' EXIT
    trap 'exit 1' HUP INT PIPE TERM
fi
sh tests/build.sh --release
[ $# -gt 0 ] || set -- message libraries socket record threads stream reading lines daemon many timed recording forward frontends operator python instructions
for bench in "$@"; do
    case $bench in
    instructions)
        printf '\n== instructions of one message\n\n'
        sh tests/instructions.sh
        ;;
    python)
        printf '\n== one record of logging in Python\n\n'
        built=$(target_dir)/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release
        RELAYFS_BUILT=$built LD_LIBRARY_PATH=$built/librelay-installed/usr/lib python3 python/benches/handler.py
        ;;
    libraries)
        musl=x86_64-unknown-linux-musl
        need_target $musl
        make --silent -C relay-producer/librelay all install PROFILE=release PREFIX=/usr CARGO_BUILD_TARGET=$musl \
            DESTDIR="$(target_dir)/$musl/release/librelay-installed"
        cargo bench --quiet --locked --package relayfs-tests --bench libraries
        ;;
    *) cargo bench --quiet --locked --package relayfs-tests --bench "$bench" ;;
    esac
done
