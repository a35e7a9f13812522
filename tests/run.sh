#!/bin/sh
# Installs what the tests need, as far as it is missing, and passes them all: format, lints, documentation, tests, and
# the main job in a release build. As root, since the tests mount, and some for other users.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
[ "$(id -u)" -eq 0 ] || fail "the tests take root: some mount for other users, or in a mount namespace of their own"

need ag silversearcher-ag
need babeltrace2 babeltrace2
need bash bash
need busybox busybox
need bwrap bubblewrap
need cat coreutils
need cc gcc
need clang++-19 clang-19
[ -e /usr/lib/llvm-19/include/c++/v1/format ] || missing="$missing libc++-19-dev libc++abi-19-dev"
need cp coreutils
need cpio cpio
need dash dash
need dd coreutils
need env coreutils
need fish fish
need fusermount3 fuse3
need g++ g++
need gccgo gccgo
need getconf libc-bin
need git git
need grep grep
need gzip gzip
need install coreutils
need ip iproute2
need java openjdk-17-jdk-headless
need less less
need logger bsdutils
need ls coreutils
need make make
need mandoc mandoc
need mkdir coreutils
need mkfifo coreutils
need mount mount
need mount.fuse3 fuse3
need musl-gcc musl-tools
need nats-server nats-server
need nc netcat-openbsd
need nm binutils
need node nodejs
need openssl openssl
need parallel parallel
need perl perl
need pip3 python3-pip
need pkg-config pkg-config
need pgrep procps
need pkill procps
need prlimit util-linux
need prometheus-node-exporter prometheus-node-exporter
need promtool prometheus
need pv pv
need python3 python3
python3 -c "import ensurepip" 2>/dev/null || missing="$missing python3-venv"
need rclone rclone
need readelf binutils
need rg ripgrep
need rmdir coreutils
need rsync rsync
need rsyslogd rsyslog
need setpriv util-linux
need sh dash
need socat socat
need sqlite3 sqlite3
need stat coreutils
need systemd-analyze systemd
need tail coreutils
need tar tar
need taskset util-linux
need timeout coreutils
need tmux tmux
need umount mount
need unshare util-linux
need valgrind valgrind
need xz xz-utils
need zsh zsh
need zstd zstd
need_rust
need_target aarch64-unknown-linux-gnu
need_fuse
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || rustup component add "$(echo $part | sed s/fmt/rustfmt/)" ||
        fail "there is no cargo $part: rustup component add rustfmt clippy"
done
install_missing
need_python pytest pytest
need_python setuptools setuptools
need_python wheel wheel
need_python yaml pyyaml
need_python perfetto.protos.perfetto.trace.perfetto_trace_pb2 perfetto protobuf

# Tests wait more than they compute.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((2 * $(nproc)))}"

started=$(date +%s)
step() {
    printf '\n== %s s: %s\n' "$(($(date +%s) - started))" "$*"
    "$@" || fail "failed: $*"
}

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked --quiet -- --deny warnings
# As README.md says that a program depends on the library.
step cargo check --package relay-producer --lib --no-default-features --features tracing,log --locked --quiet
# The sequences of aarch64; `tests/aarch64.sh` runs them.
step cargo clippy --package relay --package relay-producer --target aarch64-unknown-linux-gnu --locked --quiet -- --deny warnings
step env RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --locked --quiet
step sh tests/build.sh
step cargo test --workspace --locked --no-fail-fast
# Once more where the C library registers no areas for restartable sequences, and the project its own. All that writes
# directly, and what is killed, forked and migrated meanwhile.
with_own_areas() { step env GLIBC_TUNABLES=glibc.pthread.rseq=0 cargo test --workspace --locked --no-fail-fast "$@"; }
with_own_areas --test reference --test threads --test concurrent --test stamps --test opening --test survival --test writing --test fork
# A library that is loaded again finds its threads registered, and uses the socket: `unload` is left out. So is the load of
# `stress`, for its time.
with_own_areas --test transport --test recovery --test c_api -- \
    shared_writing:: together:: timed_direct:: timed_processes:: frontends:: survive_producers:: c_api::
# Once more where the kernel refuses them: the daemon's threads write alone, and what would be written directly goes by the
# socket. That changes nothing for the other rooms, and the processes of `stress` have sequences in any case.
without_sequences() {
    step "$(target_dir)/debug/test-without-sequences" cargo test --workspace --locked --no-fail-fast "$@"
}
# The ring, and the producer's library and command.
without_sequences --test reference --test subbuf_start --test hostile_writer --test shared --test opening --test survival --test writing \
    --test daemon_gone --test descriptors --test descriptors_taken --test fork --test command
# On a mount: the kernel's rules for what is written, the producers, the next daemon, and the C library.
without_sequences --test semantics --test transport --test recovery --test c_api -- \
    write:: histories:: overwritten:: consumed:: mapped:: flush_interval:: \
    shared:: shared_ends:: shared_writing:: together:: \
    producer:: producer_library:: producer_waiting:: \
    adoption:: kept:: reconnecting:: survive_producers:: without_sequences:: c_api:: \
    timed:: timed_clocks:: timed_copies:: timed_direct:: timed_frames:: timed_order:: timed_processes:: timed_adoption::
step sh tests/models.sh
# Whether it works does not depend on the optimization over all crates, which takes minutes.
step env CARGO_PROFILE_RELEASE_LTO=off sh tests/hello.sh
printf '\nall tests passed\n'
