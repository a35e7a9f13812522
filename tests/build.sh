#!/bin/sh
# Builds what the tests run, since no test builds anything: the programs, a daemon that dies where it is asked to, a library
# to load, and librelay, installed below the target directory.
#
#   sh tests/build.sh [--release]
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need make make
need pkg-config pkg-config
need_rust
install_missing

case ${1:-} in
'') profile=dev dir=debug ;;
--release) profile=release dir=release ;;
*) fail "unknown argument '$1': sh tests/build.sh [--release]" ;;
esac
target_dir=$(target_dir)
out=$target_dir/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}$dir

# First the programs that die where they are asked to, which move out of the way: those that users get have no such places.
env -u CARGO_BUILD_TARGET cargo build --package relayfsd --package audience --bins \
    --features relayfsd/kill-points,audience/kill-points --locked --quiet
mkdir -p "$target_dir/kill-points/debug"
for program in relayfsd audience; do
    cp -p "$target_dir/debug/$program" "$target_dir/debug/$program.d" "$target_dir/kill-points/debug/"
done
cargo build --profile $profile --workspace --locked --quiet --lib --bins --example test-plugin --example service --example timed \
    --features relay-producer/log,relay-producer/tracing
make --silent -C relay-producer/librelay all PROFILE=$profile
make --silent -C relay-producer/librelay install PROFILE=$profile PREFIX=/usr DESTDIR="$out/librelay-installed"
