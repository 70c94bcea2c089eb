"""The benchmark of loading fails where loading takes more memory than it may."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "bench" / "load.py"


@pytest.mark.parametrize(("beside", "fails"), [(2**30, False), (2**30 + 3, True)])
def test_memory_over_the_bound_is_an_error(beside, fails, tmp_path, tiny_folder, monkeypatch):
    spec = importlib.util.spec_from_file_location("load", PATH)
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    result = tmp_path / "load.json"
    monkeypatch.setattr("sys.argv", ["load.py", f"--folder={tiny_folder}", f"--result={result}"])
    # A tensor of one byte; a process that reads takes a second, one that loads two.
    run = lambda code, _: [1.0] if code == load.READ else [2.0, 7.0 + beside, 7.0]  # noqa: E731
    monkeypatch.setattr(load, "run", run)
    monkeypatch.setattr(load, "_size", lambda _: 0.25)
    if not fails:
        load.main()
        assert json.loads(result.read_text())["load_over_read"] == 2.0
        return
    with pytest.raises(SystemExit, match="error: loading took 1.00 GiB beside the model, 1.00 GiB are allowed"):
        load.main()
    assert not result.exists()
