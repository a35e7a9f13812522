#!/bin/sh
# Looks for bytes that do harm, by hand: fuzz.sh [TARGET|all] [RUNS]. Each target of tests/fuzz is given RUNS inputs (a million,
# or what RUNS says), from its corpus on, with AddressSanitizer. What is found new stays below the target directory; what
# failed goes into tests/fuzz/corpus once it is understood. Takes a nightly toolchain and cargo-fuzz, and installs them.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need c++ g++
need_rust
install_missing
cargo +nightly --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal ||
    fail "there is no nightly toolchain: rustup toolchain install nightly"
cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz ||
    fail "there is no cargo-fuzz: cargo install cargo-fuzz"

all="frames reader writer options names"
targets=${1:-all}
[ "$targets" != all ] || targets=$all
runs=${2:-${RUNS:-1000000}}
dir=$(target_dir)/fuzz

for target in $targets; do
    [ -d "tests/fuzz/corpus/$target" ] || fail "there is no target '$target': $all"
    printf '\n== %s, %s inputs\n' "$target" "$runs"
    mkdir -p "$dir/corpus/$target" "$dir/found"
    if ! cargo +nightly fuzz run --fuzz-dir tests/fuzz/libfuzzer --target-dir "$dir" "$target" \
        "$dir/corpus/$target" "tests/fuzz/corpus/$target" -- -runs="$runs" -max_len=300 -timeout=300 \
        -print_final_stats=1 -artifact_prefix="$dir/found/$target-" >"$dir/$target.log" 2>&1; then
        tail -40 "$dir/$target.log" >&2
        fail "$target: something was found, see $dir/found and $dir/$target.log"
    fi
    grep -E 'DONE|^Done|^stat::(average|peak)' "$dir/$target.log"
done
printf '\nnothing found\n'
