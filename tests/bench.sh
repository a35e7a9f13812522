#!/bin/sh
# Measures what relayfs does, beside memcpy, pipes, sockets, tmpfs, ftrace and LTTng-UST in the same run, and prints
# tables. Judges nothing; run it as root, on a machine that does nothing else. Takes about five minutes and a build.
#
# bench.sh [message|threads|stream|reading|daemon|many|instructions]: all of them, or one. ROUNDS=N: so many rounds instead of 7.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need taskset util-linux
need unshare util-linux
need objdump binutils
need make make
need pkg-config pkg-config
need_rust
need_fuse
install_missing
[ "$(id -u)" -eq 0 ] || fail "run it as root: it mounts and unmounts"
for bench in ${1:-message threads stream reading daemon many instructions}; do
    case $bench in
    instructions)
        printf '\n== instructions of one message\n\n'
        sh tests/instructions.sh
        ;;
    *) cargo bench --quiet --locked --package relayfs-tests --bench "$bench" ;;
    esac
done
