#!/bin/sh
# Counts the instructions of one message on its usual way, from the disassembly of an example: those of one turn of a
# loop that does nothing but call Channel::write, without those of the copy, which memcpy would need as well. For a
# message of 17 to 32 bytes in a sub-buffer with room for it. That way calls nothing: whatever is rare is called. Where a
# condition leaves two ways, it is the one that does not jump, unless that one calls or returns. With an argument, also
# prints them. Other lengths differ in the copy alone.
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
    # The copy compares the length, in some register, with 16 and with 32.
    function begins_copy(i) {
        return text[i] ~ /^cmp +r[a-z0-9]+,0x10$/ && operation[i + 1] == "jb" && text[i + 2] == (substr(text[i], 1, length(text[i]) - 2) "20")
    }
    # Whether a way leads from an instruction to the begin of the copy; way[] has it, and copies[] which of it copies.
    # An instruction from which none leads there is not tried again.
    function leads_back(i, number, copying,    op) {
        if (number > 1 && i == begin_at) { last = number - 1; return 1 }
        op = operation[i]
        if (!i || op == "" || seen[i] || op ~ /^(call|ret|ud|hlt)/) return 0
        seen[i] = 1
        way[number] = i
        copies[i] = copying
        if (op == "jmp") return leads_back(at[target[i]], number + 1, 0)
        if (leads_back(i + 1, number + 1, copying)) return 1
        if (op !~ /^j/) return 0
        copies[i] = copying
        return leads_back(at[target[i]], number + 1, copying)
    }
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
        for (i = entry; i <= n && !begins_copy(i) && operation[i] != ""; i++) continue
        begin_at = i
        if (i > n || !begins_copy(i)) die("no copy is found")
        if (!leads_back(i, 1, 1)) die("no way leads back without a call")
        for (turn = 1; turn <= last; turn++) {
            i = way[turn]
            if (copies[i]) copy++; else rest++
            if (list != "") print (copies[i] ? "  copy  " : "        ") text[i]
        }
        print rest " instructions of one " what ", the loop included, besides " copy + 0 " of the copy"
    }'
}
count repeat message "${1-}"
count text "record of text" "${1-}"
