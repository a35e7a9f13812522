#!/bin/sh
# Measures what relayfs does, beside memcpy, pipes, sockets, tmpfs, ftrace, LTTng-UST and loggers in the same run, and
# prints tables. Judges nothing; run it as root, on a machine that does nothing else. Takes about five minutes and a build.
#
# bench.sh [message|record|threads|stream|reading|lines|daemon|many|timed|recording|forward|frontends|operator|python|instructions]: all of them, or one. ROUNDS=N: so many rounds instead of 7.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need babeltrace2 babeltrace2
need taskset util-linux
need tmux tmux
need unshare util-linux
need nats-server nats-server
need objdump binutils
need make make
need pkg-config pkg-config
need python3 python3
need_rust
need_fuse
install_missing
[ "$(id -u)" -eq 0 ] || fail "run it as root: it mounts and unmounts"
for bench in ${1:-message record threads stream reading lines daemon many timed recording forward frontends operator python instructions}; do
    case $bench in
    instructions)
        printf '\n== instructions of one message\n\n'
        sh tests/instructions.sh
        ;;
    python)
        printf '\n== one record of logging in Python\n\n'
        built=$(target_dir)/release
        cargo build --release --quiet --locked --package relayfsd
        make --silent -C relay-producer/librelay install PROFILE=release PREFIX=/usr DESTDIR="$built/librelay-installed"
        RELAYFS_BUILT=$built LD_LIBRARY_PATH=$built/librelay-installed/usr/lib python3 python/benches/handler.py
        ;;
    *) cargo bench --quiet --locked --package relayfs-tests --bench "$bench" ;;
    esac
done
