//! The package for Python: its tests, and an installed copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use relayfs_tests::librelay::installed;
use relayfs_tests::pages::Page;
use relayfs_tests::{Mount, programs, run, stdout_of, text, tool, workspace};

/// Writes by the handler, and reads the record back.
const PROGRAM: &str = r#"
import logging, pathlib, sys, relayfs
assert pathlib.Path(relayfs.__file__).is_relative_to(sys.prefix), relayfs.__file__
assert pathlib.Path(relayfs.__file__).with_name('py.typed').exists()
logging.getLogger().addHandler(relayfs.Handler('app/log', sys.argv[1], transport='socket'))
logging.getLogger('app.db').warning('slow %d', 3)
logging.shutdown()
for record in relayfs.read('app/log', sys.argv[1]):
    print(record.level, record.target, record.message)
"#;

/// A command that leaves no files in the tree.
fn python(program: impl AsRef<Path>) -> Command {
    let mut python = Command::new(program.as_ref());
    python.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("PYTHONPATH");
    python
}

fn python3() -> Command {
    python(tool("python3", "python3").get_program())
}

/// The tests start daemons and load the library, which `sh tests/build.sh` builds.
#[test]
fn tests_of_the_package_pass() {
    installed(); // fails if something was not built
    let mut pytest = python3();
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(workspace().join("python/tests"));
    let output = run(pytest.env("RELAYFS_BUILT", programs()).current_dir(workspace().join("python")));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}(without pytest: pip install pytest)");
}

/// By the command of the page, without the network: the builder is that of the system, since pip downloads the newest
/// one otherwise.
#[test]
fn package_is_installed_as_the_page_says() {
    let mount = Mount::new(&[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    // The builder writes beside the sources.
    copy_tree(&workspace().join("python"), &dir.path().join("python"));
    let page = Page::open("../python/README.md");
    let blocks = page.blocks();
    let (.., command) = blocks.iter().find(|(.., code)| code.contains("pip install")).expect("a command");
    // The README says the same.
    assert!(Page::open("../README.md").text().contains(&format!("`{command}`")), "{command}");
    let find = "import os, wheel; print(os.path.dirname(os.path.dirname(wheel.__file__)))";
    let builder = run(python3().args(["-c", find]));
    let stderr = text(&builder.stderr);
    assert!(builder.status.success(), "{stderr}(without wheel: pip install setuptools wheel)");
    let mut shell = python(tool("sh", "dash").get_program());
    shell.args(["-euc", command]).current_dir(dir.path()).env("PYTHONPATH", text(&builder.stdout).trim_end());
    // The value 0 of the second one switches the isolation off.
    shell.envs([
        ("PIP_NO_INDEX", "1"),
        ("PIP_NO_BUILD_ISOLATION", "0"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ]);
    let output = run(&mut shell);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}(without venv: apt-get install python3-venv)");
    let entries =
        fs::read_dir(dir.path()).expect("the directory").map(|entry| entry.expect("an entry").path());
    let installed = entries.map(|path| path.join("bin/python")).find(|path| path.exists());
    let installed = installed.expect("an environment that the command has made");
    let said = stdout_of(python(&installed).args(["-c", PROGRAM]).arg(mount.point()).current_dir(&dir));
    assert_eq!(text(&said), "WARN app.db slow 3\n");
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new directory");
    for entry in fs::read_dir(from).expect("a directory of the package") {
        let entry = entry.expect("an entry");
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &copy);
        } else {
            fs::copy(&path, &copy).expect("a copy");
        }
    }
}
