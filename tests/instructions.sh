#!/bin/sh
# Counts the instructions of one message on its usual way, from the disassembly of an example: those of the function
# that does nothing but call Channel::write, from its first to its return, without those of the copy, which memcpy
# would need as well. For a message of 17 to 32 bytes in a sub-buffer with room for it, which takes no conditional
# jump: whatever is rare is jumped to. With an argument, also prints them. Other lengths differ in the copy alone.
set -eu
cd "$(dirname "$0")/.."
. tests/need.sh

need objdump binutils
need_rust
install_missing
cargo build --release --quiet --locked --package relay-producer --example one_message
objdump --disassemble --no-show-raw-insn -M intel "$(target_dir)/release/examples/one_message" |
    awk -v list="${1-}" '
    function die(why) { print "instructions.sh: " why; failed = 1; exit 1 }
    # All instructions, by number in their order; at[] finds the one at an address.
    /^[0-9a-f]+ <.*11one_message11one_message(17h[0-9a-f]+E)?>:$/ { entry = n + 1; entries++ }
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
        if (entries != 1) die(entries + 0 " functions one_message")
        for (i = entry; steps++ < 1000; i = next_one) {
            next_one = i + 1
            if (operation[i] == "jmp") next_one = at[target[i]]
            # The copy begins with a look at the length, and ends with a jump to what follows.
            if (text[i] ~ /^cmp +rcx,0x10$/ && !copied) copying = copied = 1
            if (copying) copy++; else rest++
            if (list != "") print (copying ? "  copy  " : "        ") text[i]
            if (operation[i] == "jmp") copying = 0
            if (operation[i] == "call") die("the usual way calls a function: " text[i])
            if (operation[i] == "ret") break
            if (!next_one) die("a jump to nowhere: " text[i])
        }
        if (!copied || copying || operation[i] != "ret") die("this is not the usual way")
        print rest " instructions of one message, besides " copy " of the copy"
    }'
