#!/bin/sh
# The long forms of the tests that have one: an hour or more in all, so by hand, on a machine with nothing else to do. As root.
#
#   sh tests/long.sh          everything
#   sh tests/long.sh PART     one of: crashes forward stress soak scribble fuzz mutations sanitize aarch64 package booted containers report
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need_rust
install_missing

run() {
    printf '\n== %s\n' "$*"
    env "$@" || fail "failed: $*"
}
test_for_long() {
    sh tests/build.sh --release || fail "the programs cannot be built, see above"
    run "$1" cargo test --release --locked --quiet --package relayfs-tests --test stress "$2" -- --nocapture
}

# 200 daemons killed, and 200 restarted with --keep, while four processes write and two read; and again while it is recorded.
crashes() {
    test_for_long RELAYFS_CRASHES=200 crashes::
    test_for_long RELAYFS_CRASHES=200 crashes_recorded::
}
# Forwarders, daemons and servers killed, 200 of each: about 1 GiB in a stream.
forward() {
    sh tests/build.sh --release || fail "the programs cannot be built, see above"
    run RELAYFS_FORWARD_ROUNDS=200 cargo test --release --locked --quiet --package relayfs-tests --test forward killed:: -- --nocapture
}
# Well over a thousand producers killed, under signals and migrations.
stress() { test_for_long RELAYFS_STRESS_SECONDS=120 stress::; }
# Ten minutes at full load: memory, descriptors and threads.
soak() { test_for_long RELAYFS_SOAK_SECONDS=600 soak::; }
# A minute of random writes all over a channel's files.
scribble() { test_for_long RELAYFS_SCRIBBLE_SECONDS=60 scribbler::; }
# Ten million executions of each target.
fuzz() { run RUNS=10000000 sh tests/fuzz.sh; }
# Each ordering and rule of the buffer weakened; AddressSanitizer and valgrind.
mutations() { run sh tests/mutations.sh; }
sanitize() { run sh tests/sanitize.sh; }
# The sequences of aarch64, in an emulated machine.
aarch64() { run sh tests/aarch64.sh; }
# The Debian package in a fresh root.
package() { run sh tests/package.sh; }
# Its units, in a Debian that boots.
booted() { run sh tests/booted.sh; }
# The files of packaging/containers, by podman.
containers() { run sh tests/containers.sh; }
# Pages of audience report in headless Chromium, which is installed if it is missing.
report() { run sh tests/report.sh; }

for part in ${1:-crashes forward stress soak scribble fuzz mutations sanitize aarch64 package booted containers report}; do
    case $part in
    crashes | forward | stress | soak | scribble | fuzz | mutations | sanitize | aarch64 | package | booted | containers | report) "$part" ;;
    *) fail "there is no part '$part'" ;;
    esac
done
