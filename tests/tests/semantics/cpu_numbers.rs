//! Where numbers of CPUs are missing in between, each CPU has the buffer of its number all the same.

use relayfs_tests::{private_shell, programs, stdout_of, text, tool};

/// The C library counts four CPUs then, and the last one has number 5.
#[test]
fn last_cpu_has_a_file_where_numbers_are_missing() {
    tool("mount", "mount");
    let script = r#"
        dir=$(mktemp -d); trap 'umount "$dir/relay" 2>/dev/null || :; rm -rf "$dir"' EXIT
        export PATH="$1:$PATH" RELAYFS="$dir/relay"; mkdir "$RELAYFS"
        echo 0-1,4-5 >"$dir/possible"
        mount --bind "$dir/possible" /sys/devices/system/cpu/possible
        relayfsd "$RELAYFS"
        echo $(ls "$RELAYFS")
        # There cannot be a CPU 2 or 3, so only the others are an error; CPUs 4 and 5 are offline here.
        relay-producer --flush one 2>&1 | tr ';' '\n' | grep -o 'CPU [0-9]' | sort -u | tr '\n' ' '; echo
        audience
        audience --cpu 5; echo $?
        audience --cpu 6 2>&1 | grep -c 'cpu 6\|CPU 6'
    "#;
    let said = text(&stdout_of(private_shell(script).arg(programs())));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, ["cpu0 cpu1 cpu2 cpu3 cpu4 cpu5", "CPU 4 CPU 5 ", "one", "0", "1"], "{said}");
}
