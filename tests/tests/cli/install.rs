//! `make install` and `make uninstall`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use relayfs_tests::{librelay, private_shell, programs, stdout_of, text, tool, workspace};

/// Runs a target of the Makefile, for this root.
#[track_caller]
fn make(target: &str, root: &Path, variables: &[&str]) {
    librelay::installed(); // fails if something was not built
    let out = programs();
    let profile = if out.ends_with("release") { "release" } else { "dev" };
    let mut make = tool("make", "make");
    make.arg("--silent").arg("-C").arg(workspace()).arg(target);
    make.arg(format!("PROFILE={profile}")).arg(format!("DESTDIR={}", root.display()));
    // Without cargo, as under sudo.
    let target_dir = out.parent().expect("target/PROFILE");
    make.arg("CARGO=false").arg(format!("TARGET={}", target_dir.display()));
    stdout_of(make.args(variables).env_remove("MAKEFLAGS"));
}

/// Returns all files and links below a directory, as paths from there, and the directories apart.
fn listed(root: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    fn walk(dir: &Path, root: &Path, found: &mut (BTreeSet<String>, BTreeSet<String>)) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            if entry.file_type().expect("a type").is_dir() {
                found.1.insert(name);
                walk(&path, root, found);
            } else {
                found.0.insert(name);
            }
        }
    }
    let mut found = Default::default();
    walk(root, root, &mut found);
    found
}

/// Fails if a link of an installed document leads to nothing.
#[track_caller]
fn assert_links_lead_to_files(root: &Path, files: &BTreeSet<String>) {
    let documents: Vec<&String> = files.iter().filter(|file| file.ends_with(".md")).collect();
    assert!(documents.len() > 20, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(root.join(document)).expect("a document");
        // Odd parts are blocks of code.
        let prose: String = text.split("```").step_by(2).collect();
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let leads =
                file.is_empty() || link.contains("://") || root.join(document).with_file_name(file).exists();
            assert!(leads, "{document}: {link}");
        }
    }
}

/// What the image of the containers takes of an installation is there.
#[track_caller]
fn assert_has_what_the_image_takes(root: &Path) {
    let dockerfile =
        fs::read_to_string(workspace().join("packaging/containers/Dockerfile")).expect("a Dockerfile");
    assert!(dockerfile.contains("make install DESTDIR=/installed PREFIX=/usr\n"), "{dockerfile}");
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY --from=build /installed/"));
    let copies: Vec<&str> = copies.filter_map(|copy| copy.split(' ').next()).collect();
    assert_eq!(copies.len(), 3, "{copies:?}");
    assert!(copies.iter().all(|copy| root.join(copy).exists()), "{copies:?}");
}

/// The package's scripts and its description name each unit. The description names each program, as the image's does.
#[test]
fn package_knows_all_units_and_programs() {
    let makefile = fs::read_to_string(workspace().join("Makefile")).expect("the Makefile");
    let programs = makefile.lines().find_map(|line| line.strip_prefix("PROGRAMS = ")).expect("the programs");
    let of_package = |file: &str| {
        fs::read_to_string(workspace().join("packaging/debian").join(file)).expect("a file of the package")
    };
    for unit in [
        "relayfsd/relayfsd@.service",
        "audience/audience-record@.service",
        "audience/forward/relay-forward@.service",
    ] {
        assert!(workspace().join(unit).exists(), "{unit}");
        let name = unit.rsplit('/').next().expect("a name");
        for script in ["postinst", "prerm"] {
            assert!(
                of_package(script).contains(&format!("'{}'", name.replace('@', "@*"))),
                "{script}: {name}"
            );
        }
        assert!(of_package("control.in").contains(name), "{name}");
    }
    let dockerfile =
        fs::read_to_string(workspace().join("packaging/containers/Dockerfile")).expect("a Dockerfile");
    let image = dockerfile.lines().next().expect("what the image has");
    for program in programs.split(' ') {
        assert!(of_package("control.in").contains(program), "{program}");
        assert!(image.contains(program), "{program}: {image}");
    }
}

/// Under sudo there is no cargo.
#[test]
fn library_alone_is_installed_without_cargo() {
    let dir = tempfile::tempdir().unwrap();
    librelay::install_without_cargo(dir.path());
    for name in ["lib/librelay.so.0", "lib/librelay.a", "include/relay.h", "lib/pkgconfig/relay.pc"] {
        assert!(dir.path().join("usr").join(name).exists(), "{name}");
    }
}

#[test]
fn install_puts_everything_in_place_and_uninstall_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for prefix in ["/usr/local", "/usr"] {
        make("install", &root, &[&format!("PREFIX={prefix}")]);
        let (files, _) = listed(&root);
        let below = &prefix[1..];
        assert_links_lead_to_files(&root, &files);
        for name in [
            "bin/relayfsd",
            "bin/relay-producer",
            "bin/audience",
            "bin/relay-forward",
            "lib/librelay.so",
            "lib/librelay.so.0",
            "lib/librelay.a",
            "lib/pkgconfig/relay.pc",
            "lib/relayfs/librelayfs_preload.so",
            "include/relay.h",
            "include/relay.hpp",
            "include/relayfs-compat/linux/relay.h",
            "lib/systemd/system/relayfsd@.service",
            "lib/systemd/system/relay-forward@.service",
            "share/man/man1/relay-producer.1",
            "share/man/man1/audience.1",
            "share/man/man1/audience-record.1",
            "share/man/man1/relay-forward.1",
            "share/man/man3/relay.3",
            "share/man/man7/relay.7",
            "share/man/man8/relayfsd.8",
            "share/man/man8/mount.relayfs.8",
            "share/bash-completion/completions/relayfsd",
            "share/zsh/site-functions/_audience",
            "share/fish/vendor_completions.d/relay-producer.fish",
            "share/doc/relayfs/README.md",
            "share/doc/relayfs/docs/monitoring.md",
            "share/doc/relayfs/relayfsd/dist/grafana.json",
            "lib/systemd/system/audience-record@.service",
        ] {
            assert!(files.contains(&format!("{below}/{name}")), "{prefix}: {name} is missing in {files:#?}");
        }
        assert_eq!(
            fs::read_link(root.join("sbin/mount.relayfs")).unwrap(),
            PathBuf::from(format!("{prefix}/bin/relayfsd"))
        );
        if prefix == "/usr" {
            assert_has_what_the_image_takes(&root);
        }
        let unit = fs::read_to_string(root.join(below).join("lib/systemd/system/relayfsd@.service")).unwrap();
        assert!(unit.contains(&format!("\nExecStart={prefix}/bin/relayfsd -f --keep ")), "{unit}");
        let page = root.join(below).join("share/man/man8/relayfsd.8");
        assert_eq!(fs::metadata(page).unwrap().permissions().mode() & 0o777, 0o644);

        // A second time replaces it. What others have there stays.
        fs::write(root.join(below).join("bin/other"), "of another package").unwrap();
        make("install", &root, &[&format!("PREFIX={prefix}")]);
        make("uninstall", &root, &[&format!("PREFIX={prefix}")]);
        let (files, dirs) = listed(&root);
        assert_eq!(files, BTreeSet::from([format!("{below}/bin/other")]));
        assert!(!dirs.iter().any(|dir| dir.contains("relayfs")), "{dirs:?}");
        fs::remove_dir_all(&root).unwrap();
    }
}

/// An installation in a home directory has no mount helper, and works by its paths.
#[test]
fn installed_programs_work() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("home");
    make("install", Path::new(""), &[&format!("PREFIX={}", root.display()), "HELPERDIR="]);
    let bin = root.join("bin");
    for name in ["relayfsd", "relay-producer", "audience", "relay-forward"] {
        let said = text(&stdout_of(Command::new(bin.join(name)).arg("--version")));
        assert!(said.starts_with(&format!("{name} ")), "{said}");
    }
    let script = r#"
        PATH=$1/bin:$PATH; export RELAYFS=$2/relay; mkdir "$RELAYFS"
        relayfsd "$RELAYFS"
        echo hello | relay-producer; audience
        cat >"$2/log.c" <<'END'
#include <relay.h>
int main(void)
{
	struct rchan *chan = relay_open("app/log", NULL, 65536, 4, NULL, NULL);

	return !chan || relay_write(chan, "from C\n", 7) || relay_close(chan);
}
END
        export PKG_CONFIG_PATH=$1/lib/pkgconfig
        cc -o "$2/log" "$2/log.c" $(pkg-config --cflags --libs relay)
        LD_LIBRARY_PATH=$1/lib "$2/log"; audience -c app/log
        umount "$RELAYFS"
    "#;
    tool("cc", "gcc");
    tool("pkg-config", "pkg-config");
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let said = text(&stdout_of(private_shell(script).arg(&root).arg(&scratch)));
    assert_eq!(said, "hello\nfrom C\n");
    make("uninstall", Path::new(""), &[&format!("PREFIX={}", root.display()), "HELPERDIR="]);
    assert_eq!(listed(&root).0, BTreeSet::new());
}
