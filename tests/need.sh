# Read by the scripts beside it: says or installs what is missing, and finds what cargo builds.

missing=

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# need PROGRAM PACKAGE
need() {
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

install_missing() {
    missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
    [ -n "${missing% }" ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        fail "please install: $missing(on Debian, as root: apt-get install $missing)"
    fi
    echo "installing: $missing"
    export DEBIAN_FRONTEND=noninteractive
    said=$({ apt-get update && apt-get install -y --no-install-recommends $missing; } 2>&1) ||
        fail "cannot install $missing: $said"
    missing=
}

# need_python MODULE PACKAGE...: a module that Debian does not have.
need_python() {
    module=$1
    shift
    python3 -c "import $module" 2>/dev/null && return
    said=$(python3 -m pip install --quiet --break-system-packages "$@" 2>&1) ||
        fail "cannot install the Python module $module: $said (pip install $*)"
}

# A Rust toolchain, in PATH or where rustup puts it, and a linker for it.
need_rust() {
    command -v cargo >/dev/null 2>&1 || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null 2>&1 || fail "there is no cargo: install a Rust toolchain, see https://rustup.rs"
    need cc gcc
    [ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
}

# need_target TRIPLE: the standard library of Rust for another target.
need_target() {
    [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ] && return
    said=$(rustup target add "$1" 2>&1) || fail "there is no Rust for $1: $said (rustup target add $1)"
}

# What mounting takes: the device, and for ordinary users the set-uid helper.
need_fuse() {
    [ "$(id -u)" -eq 0 ] || need fusermount3 fuse3
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null ||
        fail "there is no /dev/fuse: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
}

target_dir() {
    cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}
