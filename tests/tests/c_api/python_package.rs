//! The package for Python: its tests, and an installed copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use relayfs_tests::librelay::installed;
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

/// How the documents say that the package is installed.
const INSTALL: &str = "python3 -m venv v && v/bin/pip install ./python";
/// Prints where the system's builder is.
const WHERE: &str = "import os, setuptools, wheel; print(os.path.dirname(os.path.dirname(setuptools.__file__)))";

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

/// By the command of the documents, without the network: the builder is that of the system, where pip downloads the newest
/// one otherwise.
#[test]
fn package_is_installed_from_the_tree() {
    let mount = Mount::new(&[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    // The builder writes beside the sources.
    copy_tree(&workspace().join("python"), &dir.path().join("python"));
    let read = |page: &str| fs::read_to_string(workspace().join(page)).expect("a document");
    assert!(read("README.md").contains(&format!("`{INSTALL}`")), "README.md: {INSTALL}");
    assert!(read("python/README.md").contains(&format!("```\n{INSTALL}\n```")), "python/README.md: {INSTALL}");
    let packages = stdout_of(python3().args(["-c", WHERE]));
    let mut install = python(tool("sh", "dash").get_program());
    install.args(["-euc", INSTALL]).current_dir(&dir).env("PYTHONPATH", text(&packages).trim());
    // Pip's variable of the option --no-build-isolation is an odd one: 0 sets it.
    install.env("PIP_NO_INDEX", "1").env("PIP_NO_BUILD_ISOLATION", "0").env("PIP_QUIET", "1");
    let output = run(&mut install);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}(without setuptools: pip install setuptools wheel)");
    let python_of_venv = dir.path().join("v/bin/python");
    let said = stdout_of(python(&python_of_venv).args(["-c", PROGRAM]).arg(mount.point()).current_dir(&dir));
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
