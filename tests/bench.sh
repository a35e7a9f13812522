#!/bin/sh
# Measures what relayfs does, beside pipes and a file on tmpfs in the same run, and prints a table. Judges nothing; run
# it as root, on a machine that does nothing else. Takes about two minutes and a build.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need_rust
need_fuse
install_missing
[ "$(id -u)" -eq 0 ] || fail "run it as root: it mounts and unmounts"
exec cargo bench --quiet --locked --package relayfs-tests --bench numbers
