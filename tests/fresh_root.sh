# Read by the scripts beside it that try the Debian package in a fresh root of Debian.

# take_package DIR [PACKAGE]: has DIR/relayfs.deb, the package given or a new one.
take_package() {
    if [ $# -gt 1 ]; then
        cp "$2" "$1/relayfs.deb"
    else
        make --silent
        mv "$(sh packaging/deb.sh "$1")" "$1/relayfs.deb"
    fi
}

# fresh_root DIR PACKAGES: makes DIR/root, which has these packages with commas between them.
fresh_root() {
    echo "== a fresh root"
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    debootstrap --variant=minbase --include="$2" "$codename" "$1/root" "${mirror:-http://deb.debian.org/debian}" \
        >"$1/log" 2>&1 || { tail -n 20 "$1/log" >&2; fail "no root was made"; }
}
