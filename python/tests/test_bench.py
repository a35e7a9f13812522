"""The measurement: it finds what was built, wherever cargo has put it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conftest import BUILT, ROOT


def bench() -> ModuleType:
    """Loads python/benches/handler.py."""
    spec = importlib.util.spec_from_file_location("bench_handler", ROOT / "python/benches/handler.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_daemon_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RELAYFS_BUILT", str(BUILT))
    assert bench().built() == BUILT / "relayfsd"
    monkeypatch.delenv("RELAYFS_BUILT")
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=f"no relayfsd in {tmp_path}/debug"):
        bench().built()
    for profile in ("debug", "release"):
        (tmp_path / profile).mkdir()
        (tmp_path / profile / "relayfsd").touch()
        assert bench().built() == tmp_path / profile / "relayfsd"
