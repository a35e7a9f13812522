#!/bin/sh
# What a sanitizer sees, by hand: AddressSanitizer over writing and reading shared buffers, and over the daemon in end-to-end tests
# of peers that mean harm, and valgrind's memcheck over the socket path, which is the one taken there, since valgrind registers no restartable sequences. ThreadSanitizer is left
# out: it knows neither inline assembly nor the other processes that a buffer is shared with. As root, since it mounts;
# takes a nightly toolchain.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need cmp diffutils
need seq coreutils
need umount mount
need valgrind valgrind
need_rust
need_fuse
install_missing
cargo +nightly --version >/dev/null 2>&1 || fail "there is no nightly toolchain: rustup toolchain install nightly"
target_dir=$(target_dir)

printf '== AddressSanitizer\n'
RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target_dir/address cargo +nightly test --quiet --locked \
    --target x86_64-unknown-linux-gnu --package relay --lib --test concurrent --test threads --test reference --test hostile
RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target_dir/address cargo +nightly test --quiet --locked \
    --target x86_64-unknown-linux-gnu --package relay-producer --test shared

printf '\n== AddressSanitizer, the daemon\n'
# Leaks are not looked for, which takes ptrace; what measures memory, or bounds it, finds that of the sanitizer. In the rooms,
# the files that put most into the daemon.
with_address() {
    ASAN_OPTIONS=detect_leaks=0 CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu RUSTFLAGS=-Zsanitizer=address \
        CARGO_TARGET_DIR=$target_dir/address cargo +nightly "$@"
}
with_address build --quiet --locked --workspace --bins
with_address test --quiet --locked --package relayfs-tests --test transport --test hostile --test limits --test semantics -- \
    socket:: socket_peers:: hostile_sockets:: strangers:: exhaustion:: many:: truncated:: read:: poll:: seek:: \
    --skip read_history_is_limited_and_reads_continue --skip exhausted_memory_refuses_large_requests_only

printf '\n== valgrind\n'
cargo build --workspace --locked --quiet
programs=$target_dir/debug
dir=$(mktemp -d)
mkdir "$dir/mount"
"$programs/relayfsd" "$dir/mount"
# A mount that does not go keeps its directory: nothing is to be removed through it.
trap 'umount "$dir/mount"; rmdir "$dir/mount" && rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
seq 100000 >"$dir/lines"
memcheck="valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite"
$memcheck "$programs/relay-producer" --mount "$dir/mount" --verbose --wait=10s --cpu 0 <"$dir/lines" 2>"$dir/said" ||
    fail "valgrind: $(cat "$dir/said")"
grep -q "transport: socket (.*restartable sequences" "$dir/said" || fail "it did not go by the socket: $(cat "$dir/said")"
cat "$dir/mount/cpu0" | cmp - "$dir/lines" || fail "what was read is not what was written"
cat "$dir/said"
$memcheck "$programs/audience" --mount "$dir/mount" || fail "valgrind complains of audience"
printf '\nnothing found\n'
