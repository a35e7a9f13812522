#!/bin/sh
# Shows that the models would notice: weakens each ordering and each rule that they defend, one at a time, in a copy of
# the tree, runs them, and prints a table of which failed. Fails itself if one is still satisfied. Takes some minutes, and
# is run by hand after a change of the algorithm or of the models. An argument picks the rows that have it in their name.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh
need_rust
need tar tar
install_missing
pick=${1:-}
root=$PWD
target_dir=$(target_dir)/loom
work=$target_dir/mutations
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
survived=

# With new times, or what was built of the tree before would pass for built of this one.
fresh() {
    rm -rf "$work/tree"
    mkdir "$work/tree"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null --files-from=- --create --file=- | tar -C "$work/tree" --extract --touch --file=-
}

# Prints the names of the models that fail, or nothing.
models() {
    cd "$work/tree"
    RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" CARGO_TARGET_DIR=$target_dir \
        cargo test --package relay --test models --release --locked >"$work/said" 2>&1 || true
    cd "$root"
    grep -q '^test result:' "$work/said" || { cat "$work/said" >&2; fail "the models could not be run: $1"; }
    sed -n 's/^test \(.*\) \.\.\. FAILED$/`\1`/p' "$work/said" | paste -sd ' '
}

# weaken NAME WHAT FILE SED-SCRIPT
weaken() {
    case $1 in *"$pick"*) ;; *) return 0 ;; esac
    fresh
    sed -i "$4" "$work/tree/$3"
    changed=$(diff "$3" "$work/tree/$3" | grep -c '^<') || fail "$1: nothing to change in $3 any more"
    [ "$changed" = 1 ] || fail "$1: $changed places in $3, not one"
    failing=$(models "$1")
    [ -n "$failing" ] || survived="$survived $1"
    printf '| %s | %s | %s |\n' "$1" "$2" "${failing:-none}"
}

fresh
failing=$(models unchanged)
[ -z "$failing" ] || fail "the models fail as it is: $failing"

writer=relay/src/ring/writer.rs executor=relay/src/ring/writer/executor.rs reader=relay/src/ring/reader.rs overwrite=relay/src/ring/reader/overwrite.rs buffer=relay/src/ring/buffer.rs wake=relay/src/ring/buffer/doorbell.rs models=relay/tests/models.rs
printf '| what | weakened to | models that fail |\n| --- | --- | --- |\n'
weaken A-append '`state` after a message: Relaxed' $executor \
    '/fn append(/,/^    }/ s/ state\.store(to\.0, Ordering::Release)/ state.store(to.0, Ordering::Relaxed)/'
weaken A-record '`state` after a record: Relaxed' $executor \
    '/fn append_record(/,/^    }/ s/ state\.store(to\.0, Ordering::Release)/ state.store(to.0, Ordering::Relaxed)/'
weaken A-switch '`state` after a switch: Relaxed' $executor \
    's/state\.store(sequence\.to\.0, Ordering::Release)/state.store(sequence.to.0, Ordering::Relaxed)/'
weaken B 'the look at `state`: Relaxed' $reader \
    's/block()\.state\.load(Ordering::Acquire)/block().state.load(Ordering::Relaxed)/'
weaken C '`consumed` after a read: Relaxed' $reader \
    's/consumed\.store(self\.cursor\.0, Ordering::Release)/consumed.store(self.cursor.0, Ordering::Relaxed)/'
weaken D 'the look at `consumed` in a switch: Relaxed' $writer \
    's/buffer\.block()\.consumed\.load(Ordering::Acquire)/buffer.block().consumed.load(Ordering::Relaxed)/'
weaken E-words '`begun` and the records: Relaxed' $executor \
    's/word\.store(\*value, Ordering::Release)/word.store(*value, Ordering::Relaxed)/'
weaken E-fence 'no fence behind `begun`' $executor 's/^ *fence(Ordering::Release);$/();/'
weaken F-copy 'no fence between a copy and the look at `begun`' $buffer \
    '/fn is_begun_again/,/^    }/ s/fence(Ordering::Acquire);/();/'
weaken F-begun 'the look at `begun`: Relaxed' $buffer \
    's/begun\.load(Ordering::Acquire)/begun.load(Ordering::Relaxed)/'
weaken F-record 'no fence behind the look at a record' $overwrite '/fn catch_up/,/^    }/ s/fence(Ordering::Acquire);/();/'
weaken F-losses 'no fence behind the look at a record for the losses' $overwrite \
    '/fn overwritten_unread/,/^    }/ s/fence(Ordering::Acquire);/();/'
weaken F-size 'no fence behind the look for the size' $reader '/fn stable/,/^    }/ s/fence(Ordering::Acquire);/();/'
weaken H 'the fence behind arming: no more than AcqRel' $wake 's/fence(Ordering::SeqCst); \/\/ H/fence(Ordering::AcqRel); \/\/ H/'
weaken J 'the fence before the look at `wake`: no more than AcqRel' $wake \
    's/fence(Ordering::SeqCst); \/\/ J/fence(Ordering::AcqRel); \/\/ J/'
weaken G 'an arming does not take a new value' $wake 's/(now | 1)\.wrapping_add(2)/now | 1/'
weaken commit 'the position before the bytes' $executor \
    '/fn append(/,/^    }/ s/^        if !buffer\.data()\.copy_in(at, message)/        state.store(to.0, Ordering::Release);&/'
weaken begun 'a switch does not tell that it begins a sub-buffer' $writer \
    's/^        stores\.push(&buffer\.block()\.begun, next\.0);$//'
weaken close-sequence 'the sequence of a switch does not look at `closed`' $executor \
    's/if sequence\.unless\.is_some_and(.*) {$/if false {/'
weaken close-look 'a switch does not look at `closed`' $writer \
    '/^    fn switch($/,/^    }/ s/closed\.load(Ordering::Relaxed) != 0/closed.load(Ordering::Relaxed) > 1/'
weaken single 'a reader goes to a sub-buffer that is not begun' $overwrite \
    '/fn catch_up/,/^    }/ s/before(state, oldest)/before(oldest, oldest)/'
weaken single-losses 'no second look at a state whose record is used again' $overwrite 's/let is_old = .*/let is_old = false;/'
weaken room 'no second look for room with the lock' $models 's/^                placed = put(&buffer, SoleWriter, 2);$//'
weaken M-close '`closed` of an end: Relaxed' $writer 's/closed\.store(1, Ordering::Release)/closed.store(1, Ordering::Relaxed)/'
weaken M-announce '`closed` of an announced end: Relaxed' $buffer \
    's/closed\.store(1, Ordering::Release)/closed.store(1, Ordering::Relaxed)/'
weaken N 'the look at `closed` of a reader: Relaxed' $buffer \
    's/closed\.load(Ordering::Acquire)/closed.load(Ordering::Relaxed)/'
weaken N-open 'the exchange by which a reader opens a buffer: Relaxed' $buffer \
    's/closed\.compare_exchange(found, 0, Ordering::Acquire/closed.compare_exchange(found, 0, Ordering::Relaxed/'
weaken N-again 'no second look at the note' $buffer 's/let is_ended = is_ending();/let is_ended = false;/'
owners=relay/src/ring/area_owners.rs
weaken K-ended 'freeing an ended thread'"'"'s area: Relaxed' $owners '/fn free_ended/,/^    }/ s/Ordering::Release/Ordering::Relaxed/'
weaken K-back 'giving an area back: Relaxed' $owners '/fn give_back/,/^    }/ s/Ordering::Release/Ordering::Relaxed/'
weaken K-parent 'freeing a parent'"'"'s areas: Relaxed' $owners '/fn free_of_parent/,/^    }/ s/Ordering::Release/Ordering::Relaxed/'
weaken L 'taking an area: Relaxed' $owners '/fn take/,/^    }/ s/Ordering::Acquire/Ordering::Relaxed/'
[ -z "$survived" ] || fail "no model defends:$survived"
