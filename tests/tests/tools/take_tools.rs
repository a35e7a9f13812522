//! `take/cpuN` with programs that rely on st_size: each gets all bytes, and they are consumed once.

use relayfs_tests::lines::{Twins, assert_same};
use relayfs_tests::take::{cat, read_bytes, run_on_take};
use relayfs_tests::{stdout_of, text, tool};

/// Runs a script that prints the file's content, or leaves it in `$OUT`. The file is consumed by then.
#[track_caller]
fn get(twins: &Twins, script: &str) {
    let before = read_bytes(&twins.mount);
    let output = run_on_take(twins, &format!("{script}\n[ ! -e $OUT ] || cat $OUT"));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    assert_same(script, &output.stdout, &twins.content);
    assert_eq!(read_bytes(&twins.mount) - before, twins.content.len() as u64, "{script}: {said}");
    assert_eq!(stdout_of(&mut cat(&twins.mount)), b"", "{script}: consumed, and nothing else");
}

/// Runs the scripts one after the other, so that much data has been consumed before; in both modes.
#[track_caller]
fn get_by_each(scripts: &[&str]) {
    for mut twins in [Twins::medium(), Twins::overwriting()] {
        for (n, script) in scripts.iter().enumerate() {
            get(&twins, script);
            twins.refill(30_000 * (n + 1)..30_000 * (n + 1) + 10_000);
        }
    }
}

#[test]
fn compressors_consume_the_copy() {
    for (name, package) in [("zstd", "zstd"), ("gzip", "gzip"), ("xz", "xz-utils")] {
        tool(name, package);
    }
    get_by_each(&[
        "zstd -q $F -o x.zst; zstd -dqc x.zst",
        "zstd -qc $F | zstd -dqc",
        "zstd -qc < $F | zstd -dqc",
        "gzip -c $F | gzip -dc",
        "xz -0c $F | xz -dc",
    ]);
}

#[test]
fn archivers_consume_the_copy() {
    tool("tar", "tar");
    tool("cpio", "cpio");
    get_by_each(&[
        "tar cf x.tar -C $DIR cpu0; tar xOf x.tar",
        "tar cSf x.tar -C $DIR cpu0; tar xOf x.tar",
        "tar czf x.tar -C $DIR cpu0; tar xzOf x.tar",
        "(cd $DIR; echo cpu0 | cpio -o -H newc) > x.cpio 2>/dev/null; cpio -i --to-stdout < x.cpio 2>/dev/null",
    ]);
}

#[test]
fn copiers_consume_the_copy() {
    for (name, package) in
        [("rsync", "rsync"), ("rclone", "rclone"), ("node", "nodejs"), ("busybox", "busybox")]
    {
        tool(name, package);
    }
    get_by_each(&[
        "rsync $F $OUT",
        "rsync -aS $F $OUT",
        "rclone -q copy $F .; cat cpu0",
        "rclone -q copyto $F $OUT",
        "cp $F $OUT",
        "cp --sparse=always $F $OUT",
        "install $F $OUT",
        "busybox cat $F",
        "busybox cp $F $OUT",
        "dd if=$F of=$OUT bs=5000 2>/dev/null",
        "node -e 'fs.copyFileSync(process.env.F, process.env.OUT)'",
        "node -e 'process.stdout.write(fs.readFileSync(process.env.F))'",
    ]);
}

#[test]
fn text_tools_and_languages_consume_the_copy() {
    for (name, package) in [("sqlite3", "sqlite3"), ("python3", "python3"), ("perl", "perl")] {
        tool(name, package);
    }
    get_by_each(&[
        "cat $F",
        "tac $F | tac",
        "sort $F",
        "grep '' $F",
        "split -n 3 $F x.; cat x.*",
        "while IFS= read -r x; do echo \"$x\"; done < $F",
        "(head -n 3; cat) < $F",
        "sqlite3 :memory: \"select writefile('$OUT', readfile('$F'))\" > size",
        "python3 -c 'import os, shutil; shutil.copyfile(os.environ[\"F\"], os.environ[\"OUT\"])'",
        "python3 -c 'import os, sys; sys.stdout.write(open(os.environ[\"F\"]).read())'",
        "perl -MFile::Copy -e 'copy($ENV{F}, $ENV{OUT})'",
    ]);
}

/// Programs that divide the file, open it several times or map it get all bytes, and consume nothing. A descriptor
/// that stays open meanwhile consumes exactly what they had.
#[test]
fn programs_that_divide_or_map_it_consume_it_by_a_held_descriptor() {
    for (name, package) in [("parallel", "parallel"), ("python3", "python3")] {
        tool(name, package);
    }
    let map = "python3 -c 'import mmap, sys; f = open(sys.argv[1], \"rb\"); \
               sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:])'";
    let twice = "sh -c 'cksum $1 > sum; cat $1' sh";
    for twins in [Twins::medium(), Twins::overwriting()] {
        for script in ["parallel -j3 -k --pipepart -a $F --block 100k cat", &format!("{map} $F")] {
            let output = run_on_take(&twins, script);
            assert!(output.status.success(), "{script}: {}", text(&output.stderr));
            assert_same(script, &output.stdout, &twins.content);
            assert_eq!(read_bytes(&twins.mount), 0, "{script}");
        }
        assert_same("afterwards", &stdout_of(&mut cat(&twins.mount)), &twins.content);
    }
    get_by_each(&[
        "exec 3< $F; parallel -j3 -k --pipepart -a /proc/$$/fd/3 --block 100k cat; cat <&3 > rest",
        &format!("exec 3< $F; {map} /proc/$$/fd/3; cat <&3 > rest"),
        &format!("exec 3< $F; {twice} /proc/$$/fd/3; cat <&3 > rest"),
    ]);
}
