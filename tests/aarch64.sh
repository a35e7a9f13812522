#!/bin/sh
# The ring's tests on aarch64, in a virtual machine that is emulated: a quarter of an hour, by hand. The emulator of single
# programs, qemu-user, has no restartable sequences. A whole machine has: its kernel interrupts threads inside them.
#
#   sh tests/aarch64.sh
#
# An emulator on x86-64 keeps the order of stores there. So this shows that the assembly does what it should between
# interruptions, and not that its orderings suffice. The models defend those.
#
# The kernel is Debian's, by apt-get, or the file in the variable KERNEL.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
[ -e /usr/aarch64-linux-gnu/lib/libc.a ] || missing="$missing libc6-dev-arm64-cross"
need cpio cpio
need dpkg-deb dpkg
need gzip gzip
need qemu-system-aarch64 qemu-system-arm
need timeout coreutils
need_rust
install_missing
need_target aarch64-unknown-linux-gnu

target=aarch64-unknown-linux-gnu
# Seconds until the machine must have ended.
LIMIT=${LIMIT:-3000}
out=$(target_dir)/aarch64
root=$out/root
rm -rf "$root"
mkdir -p "$root/tests"

# Debian's kernel for virtual machines, by an apt-get that knows nothing but that architecture.
fetch_kernel() {
    state=$out/apt
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    for_arm64() {
        program=$1
        shift
        "$program" -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Dir::State="$state" \
            -o Dir::State::Lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" "$@"
    }
    for_arm64 apt-get update >/dev/null || fail "cannot update the list of packages of arm64; or set KERNEL=FILE"
    package=$(for_arm64 apt-cache depends linux-image-cloud-arm64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || fail "there is no kernel of arm64: set KERNEL=FILE"
    (cd "$state" && for_arm64 apt-get download "$package") || fail "cannot get $package; or set KERNEL=FILE"
    dpkg-deb -x "$state/$package"_*.deb "$out/kernel"
    rm -f "$state/$package"_*.deb
}
if [ -z "${KERNEL:-}" ]; then
    [ -e "$out"/kernel/boot/vmlinuz-* ] || fetch_kernel
    KERNEL=$(echo "$out"/kernel/boot/vmlinuz-*)
fi

# Linked statically, so that the machine needs no libraries: the C library registers areas, or with GLIBC_TUNABLES does not.
printf '== building\n'
build_tests() {
    env CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc RUSTFLAGS=-Ctarget-feature=+crt-static \
        CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_TARGET_DIR="$out" cargo test --no-run --locked --target $target "$@" 2>&1
}
programs="relay reference concurrent threads stamps subbuf_start hostile_writer kill_points"
words=
for name in $programs; do
    [ "$name" = relay ] || words="$words --test $name"
done
# shellcheck disable=SC2086
built=$(build_tests --package relay --features kill-points --lib $words) || fail "cannot build the tests: $built"
for name in $programs; do
    file=$(printf '%s\n' "$built" | sed -n "s|.*Executable .*(\(.*/$name-[0-9a-f]*\))\$|\1|p")
    [ -n "$file" ] || fail "cargo built no test $name: $built"
    aarch64-linux-gnu-strip -o "$root/tests/$name" "$file"
done
aarch64-linux-gnu-gcc -O2 -Wall -Wextra -Werror -static -o "$root/init" tests/c/aarch64/init.c

for areas in '' 'GLIBC_TUNABLES=glibc.pthread.rseq=0 '; do
    echo "$areas/tests/relay --test-threads=2 ring::"
    for name in $programs; do
        [ "$name" = relay ] || echo "$areas/tests/$name"
    done
done >"$root/commands"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/root.cpio.gz"

printf '== running\n'
log=$out/log
timeout "$LIMIT" qemu-system-aarch64 -M virt -cpu max,pauth=off -accel tcg,thread=multi -smp 2 -m 2G -kernel "$KERNEL" \
    -initrd "$out/root.cpio.gz" -append 'console=ttyAMA0 panic=-1 quiet' -no-reboot -nodefaults -nographic -serial stdio \
    </dev/null | tee "$log"
grep -q '^all passed: ' "$log" || fail "some tests failed, or the machine did not end; see $log"
