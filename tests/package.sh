#!/bin/sh
# The Debian package, from the outside: builds it in release, has lintian look at it, installs it in a fresh root of Debian,
# uses it there, purges it, and compares what is left. By hand and in tests/long.sh: it takes minutes and a network.
# As root.
#
#   sh tests/package.sh [PACKAGE]         # with a package that was made before
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
. tests/fresh_root.sh
[ "$(id -u)" -eq 0 ] || fail "this takes root, for a chroot and mounts"
need debootstrap debootstrap
need lintian lintian
need unshare util-linux
need_rust
need_fuse
install_missing

dir=$(mktemp -d)
trap 'rm -rf --one-file-system "$dir"' EXIT
trap 'exit 1' HUP INT PIPE TERM

take_package "$dir" "$@"

echo "== lintian"
lintian --no-cfg --allow-root --fail-on error "$dir/relayfs.deb" || fail "lintian found errors"

fresh_root "$dir" fuse3,mount,man-db
root=$dir/root
cp "$dir/relayfs.deb" "$root/tmp"
cat >"$root/tmp/script" <<'END'
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
list() { (cd / && find etc usr lib var/lib/dpkg/info opt srv root home run tmp mnt -xdev 2>/dev/null | sort); }
list >/tmp/before; list >/tmp/before
apt-get install -y --no-install-recommends /tmp/relayfs.deb >/tmp/apt 2>&1 || { cat /tmp/apt; exit 1; }
dpkg --verify relayfs
echo "-- used"
mkdir -p /mnt/relay
relayfsd doctor
relayfsd /mnt/relay
echo "Hello world" | relay-producer
[ "$(audience)" = "Hello world" ]
mkdir /mnt/relay/.relay/channels/log
echo "from a file" >/mnt/relay/.relay/channels/log/msg
[ "$(cat /mnt/relay/log*)" = "from a file" ]
umount /mnt/relay
mount -t relayfs none /mnt/relay -o n_subbufs=8
[ "$(cat /mnt/relay/.relay/channels/cpu/n_subbufs)" = 8 ]
umount /mnt/relay
ldconfig -p | grep -q librelay.so.0
man -w relayfsd relay-producer audience mount.relayfs >/tmp/pages && [ "$(wc -l </tmp/pages)" -eq 4 ]
echo "-- purged"
rmdir /mnt/relay
apt-get purge -y relayfs >/tmp/apt 2>&1 || { cat /tmp/apt; exit 1; }
rm -f /tmp/pages /tmp/apt
list >/tmp/after
diff /tmp/before /tmp/after | grep -v ' tmp/' | grep '^[<>]' || echo "nothing is left"
END
unshare --mount --propagation private --pid --fork --kill-child sh -euc '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"; umount "$1/dev/shm" 2>/dev/null || true; mount -t tmpfs tmpfs "$1/dev/shm"
    exec chroot "$1" /bin/sh /tmp/script' sh "$root" >"$dir/said" 2>&1 || { cat "$dir/said" >&2; fail "it does not work there"; }
cat "$dir/said"
[ "$(tail -n 1 "$dir/said")" = "nothing is left" ] || fail "the purge leaves files"
echo "the package installs, works and purges"
