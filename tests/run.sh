#!/bin/sh
# Installs what the tests need, as far as it is missing, and passes them all: format, lints, documentation, tests, and
# the main job in a release build. As root, since the tests mount, and some for other users.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
[ "$(id -u)" -eq 0 ] || fail "the tests take root: some mount for other users, or in a mount namespace of their own"

need ag silversearcher-ag
need busybox busybox
need cat coreutils
need cc gcc
need cp coreutils
need cpio cpio
need dash dash
need dd coreutils
need env coreutils
need fusermount3 fuse3
need g++ g++
need getconf libc-bin
need git git
need gzip gzip
need install coreutils
need java openjdk-17-jdk-headless
need less less
need ls coreutils
need make make
need mount mount
need mount.fuse3 fuse3
need nc netcat-openbsd
need nm binutils
need node nodejs
need parallel parallel
need perl perl
need pkg-config pkg-config
need prlimit util-linux
need pv pv
need python3 python3
need rclone rclone
need readelf binutils
need rg ripgrep
need rsync rsync
need setpriv util-linux
need sh dash
need socat socat
need sqlite3 sqlite3
need stat coreutils
need tail coreutils
need tar tar
need taskset util-linux
need timeout coreutils
need umount mount
need unshare util-linux
need valgrind valgrind
need xz xz-utils
need zsh zsh
need zstd zstd
need_rust
need_fuse
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || rustup component add "$(echo $part | sed s/fmt/rustfmt/)" ||
        fail "there is no cargo $part: rustup component add rustfmt clippy"
done
install_missing

step() {
    printf '\n== %s\n' "$*"
    "$@" || fail "failed: $*"
}

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked --quiet -- --deny warnings
step env RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --locked --quiet
step sh tests/build.sh
step cargo test --workspace --locked --no-fail-fast
# Once more as where the C library has no restartable sequences: the daemon's threads write alone, and what would be written
# directly goes by the socket. That changes nothing for the other rooms, and the processes of `stress` have sequences in any case.
without_sequences() { step env GLIBC_TUNABLES=glibc.pthread.rseq=0 cargo test --workspace --locked --no-fail-fast "$@"; }
# The ring, and the producer's library and command.
without_sequences --test reference --test subbuf_start --test hostile_writer --test shared --test opening --test survival --test writing \
    --test daemon_gone --test descriptors --test descriptors_taken --test fork --test command
# On a mount: the kernel's rules for what is written, the producers, the next daemon, and the C library.
without_sequences --test semantics --test transport --test recovery --test c_api -- \
    write:: histories:: overwritten:: consumed:: mapped:: flush_interval:: \
    shared:: shared_ends:: shared_writing:: together:: producer:: \
    adoption:: kept:: reconnecting:: survive_producers:: without_sequences:: c_api:: c_api_bad_input::
step sh tests/models.sh
step sh tests/hello.sh
printf '\nall tests passed\n'
