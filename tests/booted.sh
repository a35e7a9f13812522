#!/bin/sh
# The units under a systemd that has booted: installs the package in a fresh root of Debian, boots it in a container, uses the
# services of daemon, recorder and forwarder, kills and restarts them, boots again, purges, and compares what came out with what
# was written. By hand and in tests/long.sh: it takes minutes and a network. As root.
#
#   sh tests/booted.sh [PACKAGE]          # with a package that was made before
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
. tests/fresh_root.sh
[ "$(id -u)" -eq 0 ] || fail "this takes root, for a container"
need debootstrap debootstrap
need systemd-nspawn systemd-container
need nsenter util-linux
need_rust
need_fuse
install_missing

dir=$(mktemp -d)
nspawn=
finish() {
    if [ -n "$nspawn" ]; then
        # With its first process all others of the container end.
        pkill -KILL -P "$nspawn" || true
        wait "$nspawn" || true
    fi
    rm -rf --one-file-system "$dir"
}
trap finish EXIT
trap 'exit 1' HUP INT PIPE TERM

take_package "$dir" "$@"

fresh_root "$dir" systemd,systemd-sysv,dbus,fuse3,mount,nats-server,procps
root=$dir/root
cp "$dir/relayfs.deb" "$root/root"
chroot "$root" apt-get install -y --no-install-recommends /root/relayfs.deb >"$dir/log" 2>&1 || {
    tail -n 20 "$dir/log" >&2
    fail "the package is not installed"
}
echo "127.0.0.1 localhost" >"$root/etc/hosts"
# A server with JetStream, as an operator has it.
cat >"$root/etc/nats-server.conf" <<'END'
listen: 127.0.0.1:4222
jetstream { store_dir: /var/lib/nats }
END

# Waits until a command succeeds, at most a minute.
until_true() {
    n=0
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ "$n" -lt 600 ] || {
            inside journalctl --no-pager --lines 60 >&2 || true
            fail "not within a minute: $*"
        }
        sleep 0.1
    done
}
# Runs a command in the container.
inside() { nsenter --target "$(pgrep -P "$nspawn")" --mount --uts --ipc --net --pid --cgroup -- "$@"; }
# Runs a script in the container.
script() { inside sh -euc "$1"; }
is_up() { script 'case $(systemctl is-system-running) in running | degraded) ;; *) false ;; esac'; }
boot() {
    echo "== boots"
    systemd-nspawn --quiet --directory "$root" --register=no --keep-unit --private-network --bind=/dev/fuse --boot \
        --console=pipe </dev/null >"$dir/console" 2>&1 &
    nspawn=$!
    until_true is_up
}
halt() {
    echo "== halts"
    inside systemctl --no-block poweroff
    wait "$nspawn" || fail "the container ended with $?"
    nspawn=
}
active() { inside systemctl is-active --quiet "$@"; }


boot
echo "== services"
script '
    echo "OPTIONS=\"--channel app/log:timed\"" >/etc/default/relayfsd
    # It replaces the other.
    echo "OPTIONS=\"--channel app/log:timed --n-subbufs 16\"" >/etc/default/relayfsd-mnt-near
    echo "none /mnt/tab relayfs n_subbufs=4 0 0" >>/etc/fstab
    mkdir /mnt/tab
    mkdir -p /etc/systemd/system/nats-server.service.d /var/lib/nats
    printf "[Service]\nUser=root\nExecStart=\nExecStart=/usr/sbin/nats-server -c /etc/nats-server.conf\n" \
        >/etc/systemd/system/nats-server.service.d/store.conf
    systemctl daemon-reload
    systemctl enable --quiet --now nats-server relayfsd@mnt-near relayfsd@mnt-far
    # Type=notify: the mounts are usable at once, with the options of both files.
    [ "$(cat /mnt/near/.relay/channels/app/log/n_subbufs)" = 16 ]
    systemctl enable --quiet --now audience-record@mnt-near relay-forward@mnt-far
    relayfsd doctor /mnt/near
    systemd-analyze security --no-pager relayfsd@mnt-near | tail -n 1'
active relayfsd@mnt-near relayfsd@mnt-far audience-record@mnt-near relay-forward@mnt-far

# Numbers from the first to the last, a line each, into both mounts.
write() {
    echo "== writes $1 to $2"
    for mount in near far; do
        inside sh -c "seq $1 $2 | relay-producer --mount /mnt/$mount --wait-mount=60s --channel app/log --wait=60s" &
        pids="${pids-} $!"
    done
}
written() {
    for pid in $pids; do wait "$pid" || fail "a producer ended with $?"; done
    pids=
}
# The process of a unit ends as if it had crashed; systemd starts it again.
kill_unit() {
    before=$(inside systemctl show --value --property MainPID "$1")
    inside systemctl kill --kill-whom=main --signal KILL "$1"
    until_true script "[ \"\$(systemctl show --value --property MainPID $1)\" -ne $before ] && systemctl is-active --quiet $1"
}
write 1 300000
kill_unit relayfsd@mnt-near
kill_unit relayfsd@mnt-far
kill_unit audience-record@mnt-near
kill_unit relay-forward@mnt-far
inside systemctl restart nats-server relayfsd@mnt-near relayfsd@mnt-far
inside systemctl restart audience-record@mnt-near relay-forward@mnt-far
written
halt

boot
# They came with the machine.
until_true active relayfsd@mnt-near relayfsd@mnt-far audience-record@mnt-near relay-forward@mnt-far
until_true script '[ "$(cat /mnt/tab/.relay/channels/cpu/n_subbufs)" = 4 ]'
write 300001 300500
written

echo "== what came out"
recorded() { inside audience --trace /var/log/relay/mnt-near/app/log --output cat; }
stored() { inside relay-forward --from nats://localhost --output cat; }
all_of() { [ "$("$1" | sort -n | uniq | wc -l)" -eq 300500 ]; }
seq 1 300500 >"$dir/written"
for way in recorded stored; do
    until_true all_of $way
    $way | sort -n | cmp - "$dir/written" || fail "$way: not each line once"
done

echo "== purged"
script '
    export DEBIAN_FRONTEND=noninteractive
    apt-get purge -y relayfs >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
    ps -e -o args= | grep -E "^(/[a-z/]*)?(relay|audience)" | grep -v mnt/tab || true
    findmnt -n -o TARGET -t fuse.relayfsd | grep -v /mnt/tab || true
    find /etc /usr /lib/systemd | grep -E "relay|audience" | grep -v /etc/default/ || true' >"$dir/left"
[ ! -s "$dir/left" ] || fail "the purge leaves: $(cat "$dir/left")"
halt
echo "the units boot, restart, record, forward and purge"
