#!/bin/sh
# Builds what the tests run, since no test builds anything: the programs, a daemon that dies where it is asked to, a library
# to load, and librelay, installed below the target directory. Of the producers also those of other C libraries.
#
#   sh tests/build.sh [--release]
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need make make
need musl-gcc musl-tools
need pkg-config pkg-config
need_rust
install_missing
need_target x86_64-unknown-linux-musl

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
# relay-producer with a glibc that is linked statically, which moves out of the way as well.
env -u CARGO_BUILD_TARGET cargo rustc --package relay-producer --bin relay-producer --locked --quiet -- \
    -C target-feature=+crt-static
mkdir -p "$target_dir/static/debug"
cp -p "$target_dir/debug/relay-producer" "$target_dir/debug/relay-producer.d" "$target_dir/static/debug/"
# relay-producer and librelay for musl.
musl=x86_64-unknown-linux-musl
cargo build --package relay-producer --package librelay --target $musl --locked --quiet
make --silent -C relay-producer/librelay all install PROFILE=dev CARGO_BUILD_TARGET=$musl PREFIX=/usr \
    DESTDIR="$target_dir/$musl/debug/librelay-installed"
cargo build --profile $profile --workspace --locked --quiet --lib --bins --example test-plugin --example service --example timed \
    --features relay-producer/log,relay-producer/tracing
make --silent -C relay-producer/librelay all PROFILE=$profile
make --silent -C relay-producer/librelay install PROFILE=$profile PREFIX=/usr DESTDIR="$out/librelay-installed"
