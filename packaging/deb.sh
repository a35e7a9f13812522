#!/bin/sh
# Makes a Debian package of what `make install` installs, by dpkg-deb alone: it needs nothing that the build does not
# need, where cargo-deb would be another build of some hundred crates, and a second list of all files.
#
#   make && sh packaging/deb.sh [OUTPUT_DIRECTORY]       # prints the path of the package
#
# PROFILE=dev and TARGET= are as for make.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need dpkg-deb dpkg
need dpkg-shlibdeps dpkg-dev
need gzip gzip
need make make
need strip binutils
install_missing

output=$(realpath "${1:-.}")
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT PIPE TERM
root=$work/root
umask 022

make --silent install DESTDIR="$root" PREFIX=/usr LIBDIR="/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)" \
    HELPERDIR=/usr/sbin UNITDIR=/lib/systemd/system ZSHDIR=/usr/share/zsh/vendor-completions ${PROFILE:+PROFILE="$PROFILE"} \
    ${TARGET:+TARGET="$TARGET"} >&2

# Links within /usr are relative in a package.
ln -sf ../bin/relayfsd "$root/usr/sbin/mount.relayfs"
strip --strip-unneeded "$root"/usr/bin/* "$root"/usr/lib/relayfs/*.so "$root"/usr/lib/*/librelay.so.*.*.*
strip --strip-debug "$root"/usr/lib/*/librelay.a
chmod 644 "$root"/usr/lib/relayfs/*.so "$root"/usr/lib/*/librelay.so.*.*.*
find "$root/usr/share/man" -type f -exec gzip -9n {} +
doc=$root/usr/share/doc/relayfs
rm "$doc/LICENSE-APACHE" "$doc/LICENSE-MIT"
# The lines of the license, with a space before each; an empty line is a dot.
sed 's/^$/./; s/^/ /' LICENSE-MIT >"$work/mit"
sed -e "/^@MIT@\$/{r $work/mit" -e 'd}' packaging/debian/copyright >"$doc/copyright"
# What a package has changed, for those who read that: the same as the changelog.
printf 'relayfs (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' "$version" \
    "$(sed -n 's/^Maintainer: //p' packaging/debian/control.in)" \
    "$(date -u -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}")" |
    gzip -9n >"$doc/changelog.gz"

mkdir "$work/debian"
printf 'Source: relayfs\n\nPackage: relayfs\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O "-l$root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)" \
    root/usr/bin/* root/usr/lib/relayfs/*.so root/usr/lib/*/librelay.so.*.*.* | sed 's/^shlibs:Depends=//')

control=$root/DEBIAN
install -d "$control"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$depends/" \
    -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$root" | cut -f1)/" packaging/debian/control.in >"$control/control"
install -m 755 packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm "$control"
install -m 644 packaging/debian/triggers "$control/triggers"
echo "librelay 0 relayfs" >"$control/shlibs"
(cd "$root" && find usr lib -type f -exec md5sum {} + | sort -k2 >DEBIAN/md5sums)
file=$output/relayfs_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$file" >&2
echo "$file"
