#!/bin/sh
# What no test with real threads can show: the models of the buffer, which loom runs in every order that the memory model
# allows, and writers that die at each place of a restartable sequence. Both need builds of their own.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need_rust
install_missing
target_dir=$(target_dir)

# Bounds are in the models. LOOM_MAX_PREEMPTIONS sets another: a higher one takes much longer.
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" CARGO_TARGET_DIR=$target_dir/loom \
    cargo test --package relay --test models --release --locked --quiet
cargo test --package relay --features kill-points --test kill_points --locked --quiet
