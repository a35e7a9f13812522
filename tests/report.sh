#!/bin/sh
# Opens pages of `audience report` in headless Chromium: what is on the screen, filters, scrolling among 100,000 messages,
# and hostile texts, which stay texts. Leaves screenshots in the directory that is named, if one is.
#
#   sh tests/report.sh [DIRECTORY]
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need chromium chromium
need node nodejs
need timeout coreutils
need_rust
need_fuse
install_missing
sh tests/build.sh
export PATH="$(target_dir)/debug:$(target_dir)/debug/examples:$PATH"

dir=$(mktemp -d)
shots=${1:-$dir}
mkdir -p "$shots"
export RELAYFS=$dir/relay HOME=$dir
service=
clean_up() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    umount "$RELAYFS" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 1' HUP INT PIPE TERM
mkdir "$RELAYFS"

# browse PAGE NAME SCHEME: uses the page, prints what it found, and leaves a screenshot.
browse() {
    timeout 300 node tests/report/browser.js "$1" "$shots/$2.png" "$3" || fail "$1 is wrong, see above"
}

relayfsd --channel app/log:timed:subbuf-size=64K:n-subbufs=8 --channel many:timed:subbuf-size=1M:n-subbufs=16 --channel raw \
    "$RELAYFS" || fail "cannot mount, see above"
service >/dev/null 2>&1 &
service=$!
# Texts that a page must not obey, and one record of each level.
printf '%s\n' "</script><script>document.title='hostile'</script>" '<!--<script>' \
    "<img src=x onerror=\"document.title='hostile'\">" '"><svg onload="document.title=1">' |
    relay-producer -c app/log --level warn --target '<b>target</b>'
for level in error warn info debug trace; do echo "level $level" | relay-producer -c app/log --level $level --target app::levels; done
for part in 1 2 3 4; do seq -f "message %.0f of many" 1 30000 | relay-producer -c many --wait=10 --level info --target "part$part"; done

audience report -o "$dir/live.html" --duration 5s -c app/log -c raw
browse "$dir/live.html" live-light light
audience record -o "$dir/recording" --all --duration 3s --progress 0 2>/dev/null
kill "$service"
service=
audience report -o "$dir/recording.html" --messages 200000 "$dir/recording"
ls -l "$dir/recording.html"
browse "$dir/recording.html" recording-dark dark
echo "the pages are right"
