#!/bin/sh
# Measures what relayfs does, beside a pipe and a file on tmpfs in the same run, and prints a table. As root, or with
# fusermount3; takes a minute or two besides the build. Nothing is judged here: run it on a quiet machine.
set -eu
cd "$(dirname "$0")/.."
exec cargo bench --quiet --locked --package relayfs-tests --bench numbers
