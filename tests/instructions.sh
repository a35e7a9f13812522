#!/bin/sh
# Counts the instructions of one message on its usual way, from the disassembly of an example: those of one turn of a
# loop that does nothing but call Channel::write, without those of the copy, which memcpy would need as well. For a
# message of 17 to 32 bytes in a sub-buffer with room for it, which takes no conditional jump but the one that closes
# the loop: whatever is rare is jumped to. With an argument, also prints them. Other lengths differ in the copy alone.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need objdump binutils
need_rust
install_missing
cargo build --release --quiet --locked --package relay-producer --example repeat
count() {
    objdump --disassemble --no-show-raw-insn -M intel "$(target_dir)/release/examples/repeat" |
        awk -v function_name="$1" -v what="$2" -v list="$3" '
    function die(why) { print "instructions.sh: " why; failed = 1; exit 1 }
    BEGIN { begin = "^[0-9a-f]+ <.*6repeat" length(function_name) function_name "(17h[0-9a-f]+E)?>:$" }
    # All instructions, by number in their order; at[] finds the one at an address.
    />:$/ && $0 ~ begin { entry = n + 2; entries++ }
    />:$/ { n++ } # no instruction: the end of what stands before
    /^ +[0-9a-f]+:\t/ {
        n++
        address = $1
        sub(":", "", address)
        at[address] = n
        sub("^ +[0-9a-f]+:\t", "")
        text[n] = $0
        operation[n] = $1
        target[n] = $2
    }
    END {
        if (failed) exit 1
        if (entries != 1) die(entries + 0 " functions called " function_name)
        # From the copy, which begins with a look at the length and ends with a jump, on until it comes there again.
        for (i = entry; i <= n && text[i] !~ /^cmp +rcx,0x10$/ && operation[i] != ""; i++) continue
        copying = copied = i <= n
        for (; i <= n && i && !place[i]; i = to) {
            place[i] = ++last
            way[last] = i
            to = i + 1
            if (operation[i] == "jmp") to = at[target[i]]
            else if (operation[i] ~ /^j/ && place[at[target[i]]]) to = at[target[i]]
            else if (operation[i] ~ /^(call|ret)/) die("it does not lead back: " text[i])
            copies[i] = copying
            if (operation[i] == "jmp") copying = 0
        }
        if (!copied || !place[i] || place[i] != 1) die("this is not the usual way")
        for (turn = place[i]; turn <= last; turn++) {
            i = way[turn]
            if (copies[i]) copy++; else rest++
            if (list != "") print (copies[i] ? "  copy  " : "        ") text[i]
        }
        print rest " instructions of one " what ", the loop included, besides " copy + 0 " of the copy"
    }'
}
count repeat message "${1-}"
count text "record of text" "${1-}"
