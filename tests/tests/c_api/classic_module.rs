//! The unmodified classic kernel module: compiled with headers of the kernel's names, and run by `relay-producer
//! --load`, with the classic reader beside it.

use relayfs_tests::c;
use relayfs_tests::classic::Classic;
use relayfs_tests::users::where_users_mount;

/// Prints when a module has run, and its data.
const HELPERS: &str = r#"
    bytes() { sed -n 's/^total.bytes //p' /mnt/relay/.relay/channels/cpu/stats; }
    written_since() { [ "$(bytes)" != "$1" ]; }
    # load COMMAND...: in the background, until it says that the module is loaded
    load() {
        rm -f said; "$@" 2>said & producer=$!
        until_true grep -qs ': loaded$' said
    }
    # end SIGNAL
    end() { kill -$1 $producer; until_true ended $producer; wait $producer; echo "$?: $(sed s,.*/,, said | tr '\n' '|')"; }
"#;

/// A module is loaded into a running daemon, and the reader reads it and leaves the daemon alone. The output is
/// compared byte for byte. Linked with the library or not, with old or later kernels' names, and one that is
/// compiled without warnings.
#[test]
fn module_and_reader_meet_in_a_running_daemon() {
    let classic = Classic::installed();
    classic.module("hello-mod.so", &["-Wall", "-Werror"], "classic/hello-mod");
    classic.module(
        "linked.so",
        &[
            "-Wall",
            "-Werror",
            &format!("-L{}", classic.path().join("lib").display()),
            "-Wl,--no-as-needed,-lrelay",
        ],
        "classic/hello-mod",
    );
    classic.module("printed.so", &["-w"], "classic/hello-mod-printed");
    let printed = classic.run(&format!(
        r#"{HELPERS}
        relayfsd /mnt/relay
        for module in hello-mod.so linked.so printed.so; do
            before=$(bytes)
            load relay-producer -v --load "$1/$module"
            until_true written_since $before
            audience --exec audience-classic; mounted
            end TERM
        done
        cat relay/cpu*
        "#
    ));
    let read = "Hello world\n\nmounted\n";
    let expected = format!(
        "{read}0: hello-mod.so: loaded|hello-mod.so: unloaded|\n\
         {read}0: linked.so: loaded|linked.so: unloaded|\n\
         {read}0: hello: 12 bytes|printed.so: loaded|hello: bye|printed.so: unloaded|\n"
    );
    assert_eq!(printed, expected);
}

/// The installed files, without those of the build.
#[test]
fn module_finds_its_library_and_its_relayfs() {
    let classic = Classic::installed();
    classic.module("hello-mod.so", &["-Wall", "-Werror"], "classic/hello-mod");
    let printed = classic.run(
        r#"
        mkdir other third; relayfsd other; relayfsd third
        RELAYFS=/mnt/other relay-producer --load "$1/hello-mod.so" --for 0; audience -m other
        RELAYFS=/mnt/other relay-producer --mount third --load "$1/hello-mod.so" --for=10ms; audience -m third
        mkdir bare; cp "$(command -v relay-producer)" bare
        bare/relay-producer --load "$1/hello-mod.so"; echo $?
        cp "$(dirname "$(command -v relay-producer)")/../lib/librelay.so.0" bare
        bare/relay-producer -m other --load "$1/hello-mod.so" --for 0; audience -m other
        audience -m other; audience -m third
        umount other third
        "#,
    );
    let expected = "Hello world\nHello world\n\
                    relay-producer: cannot load DIR/hello-mod.so: librelay.so.0: cannot open shared object file: No such \
                    file or directory; it belongs beside this program, or into ../lib\n1\nHello world\n";
    assert_eq!(printed.replace(classic.path().to_str().expect("ASCII"), "DIR"), expected);
}

/// The module stays until SIGINT, SIGTERM or the end of the duration, then cleanup runs, and the exit status is 0.
/// Only a second signal interrupts init or cleanup.
#[test]
fn module_is_cleaned_up_at_any_end() {
    let classic = Classic::installed();
    classic.module("odd.so", &[], "modules/odd");
    classic.module("slow.so", &[r#"-DSLOW="/mnt/go""#], "modules/odd");
    classic.module("hangs.so", &["-DHANGS"], "modules/odd");
    let printed = classic.run(&format!(
        r#"{HELPERS}
        # begin MODULE: in the background, until it is in its init
        begin() {{
            rm -f said; relay-producer --load "$1" 2>said & producer=$!
            until_true grep -qs warning said
        }}
        for signal in INT TERM; do load relay-producer -v --load "$1/odd.so"; end $signal; done
        relay-producer --load "$1/odd.so" --for 20ms; echo $?
        begin "$1/slow.so"; kill -TERM $producer; touch go; until_true ended $producer; wait $producer; echo "$?: $(tail -n 1 said)"
        begin "$1/hangs.so"; kill -TERM $producer; kill -0 $producer && echo running
        kill -INT $producer; until_true ended $producer; wait $producer 2>/dev/null; test $? -gt 128 && echo "killed: $(tail -n 1 said)"
        "#
    ));
    let init = "odd: init 1|odd: a level of long ago|odd: warning|";
    let ends = format!("0: {init}odd.so: loaded|odd: exit|odd.so: unloaded|\n");
    let expected = format!(
        "{ends}{ends}{}odd: exit\n0\n0: odd: exit\nrunning\nkilled: odd: warning\n",
        init.replace('|', "\n")
    );
    assert_eq!(printed, expected);
}

/// A failing init: its errno's text and exit status 1. A missing symbol: a clear line. No daemon: a line that says
/// how to start one.
#[test]
fn error_of_module_is_reported() {
    let classic = Classic::installed();
    classic.module("hello-mod.so", &["-Wall", "-Werror"], "classic/hello-mod");
    for (name, flag) in [
        ("fails.so", "-DFAILS=-16"),
        ("unknown-error.so", "-DFAILS=-9999"),
        ("strange.so", "-DSTRANGE"),
        ("alone.so", "-DALONE"),
        ("nothing.so", "-DNOTHING"),
        ("unknown.so", "-DUNKNOWN"),
    ] {
        classic.module(name, &[flag], "modules/odd");
    }
    c::compile(&classic.path().join("object.o"), &["-c"], &["classic/get_cputotal"]);
    let printed = classic.run(
        r#"
        cd "$1"; PATH=$PATH:/mnt; : >empty
        # What modules say of themselves is not of interest here.
        try() { relay-producer --load "$@" 2>&1 | grep -v ^odd; }
        relay-producer --load hello-mod.so; echo $?
        relayfsd -f /mnt/relay & daemon=$!; until_true test -e /mnt/relay/.relay/version
        for module in fails unknown-error strange alone; do try $module.so --for 0; done
        for file in nothing.so unknown.so none.so empty object.o audience-classic /mnt; do try $file; done
        relay-producer --load fails.so 2>/dev/null; echo $?
        relay-producer --load nothing.so; echo $?
        relay-producer --load strange.so --for 0 2>/dev/null; echo $?
        relay-producer --load hello-mod.so message; echo $?
        relay-producer --for 1s message; echo $?
        kill -9 $daemon; wait $daemon 2>/dev/null
        relay-producer --load hello-mod.so; echo $?
        "#,
    );
    let failed = "relay_open() failed.\nrelay-producer: hello-mod.so: init_module failed: Out of memory; ";
    let made = "; a module is made by cc -shared -fPIC";
    let nothing = "cannot load nothing.so: there is no init_module in it: neither a function of this name nor module_init()";
    let expected = format!(
        "{failed}no relayfs is mounted on /mnt/relay: it is an ordinary directory; mount one with: relayfsd /mnt/relay; or name \
         another mount point\n1\n\
         relay-producer: fails.so: init_module failed: Device or resource busy\n\
         relay-producer: unknown-error.so: init_module failed: it returned -9999\n\
         relay-producer: strange.so: init_module returned 3, which is neither 0 nor -E...; taken for success\n\
         relay-producer: {nothing}\n\
         relay-producer: cannot load unknown.so: undefined symbol: there_is_no_such_function\n\
         relay-producer: cannot load none.so: No such file or directory (os error 2)\n\
         relay-producer: cannot load empty: file too short{made}\n\
         relay-producer: cannot load object.o: only ET_DYN and ET_EXEC can be loaded{made}\n\
         relay-producer: cannot load audience-classic: cannot dynamically load position-independent executable{made}\n\
         relay-producer: cannot load /mnt: cannot read file data: Is a directory{made}\n\
         1\nrelay-producer: {nothing}\n1\n0\n\
         relay-producer: the argument '--load <MODULE.so>' cannot be used with '[MESSAGE]...'; try --help\n2\n\
         relay-producer: the argument '--for <DURATION>' cannot be used with '[MESSAGE]...'; try --help\n2\n\
         {failed}the daemon of /mnt/relay has died and left its mount behind: umount it, or start it again: \
         relayfsd /mnt/relay\n1\n"
    );
    assert_eq!(printed, expected);
}

/// Also for users.
#[test]
fn users_load_modules_into_their_own_relayfs() {
    let classic = Classic::installed();
    classic.module("hello-mod.so", &["-Wall", "-Werror"], "classic/hello-mod");
    let script = r#"
        mount -t tmpfs tmpfs /mnt; mkdir /mnt/relay; chown 65534 /mnt/relay; cd /; PATH=DIR:DIR/bin:$PATH
        unset RELAYFS
        $nobody relayfsd /mnt/relay
        $nobody relay-producer --load DIR/hello-mod.so --for 0; echo $?
        $nobody audience --exec audience-classic; echo $?
        $nobody fusermount3 -u /mnt/relay
    "#;
    let lines = where_users_mount(&script.replace("DIR", classic.path().to_str().expect("ASCII")));
    assert_eq!(lines, ["0", "Hello world", "", "0"]);
}

/// They never hide the kernel's own linux/*.h: only a compiler that names their directory finds them, and even then
/// the C library's headers find theirs.
#[test]
fn kernel_names_are_in_a_separate_directory() {
    let classic = Classic::installed();
    let include = format!("-I{}", classic.path().join("include").display());
    let output = classic.path().join("headers.o");
    c::compile(&output, &["-c", "-Wall", "-Werror", &include, "-DSYSTEM"], &["modules/headers"]);
    classic.module(
        "headers.so",
        &["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c89"],
        "modules/headers",
    );
}
