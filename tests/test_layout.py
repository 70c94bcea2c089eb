"""The house rules that no single test would notice being broken: which room may import which, and what stays lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"kernels": 0, "models": 1, "videoauto_jax": 2, "train": 3, "eval": 3, "cli": 4}
ANYONE = ("videoauto_jax.errors",)
FOLDERS = ("kernels", "models", "videoauto_jax", "train", "eval", "configs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def room_of(module):
    """The room of `videoauto_jax.<...>`; None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "videoauto_jax":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "videoauto_jax"


def room_of_file(path):
    parts = path.relative_to(ROOT).parts
    return "cli" if parts[:2] == ("videoauto_jax", "cli") else parts[0]


def imports(path):
    """(module, line) of every import in a file, wherever it stands; of `from a import b` also a.b."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_there_is_something_to_check():
    assert len(FILES) > 80 and {room_of_file(path) for path in FILES} >= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_none_is_torch(path):
    room, wrong = room_of_file(path), []
    for module, line in imports(path):
        other = room_of(module)
        if module.split(".")[0] in ("torch", "torchvision", "tensorflow"):
            wrong.append(f"{path}:{line} imports {module}")
        if other is None or other == room or module.startswith(ANYONE) or module == "videoauto_jax":
            continue
        if room not in ROOMS or ROOMS[other] >= ROOMS[room]:
            wrong.append(f"{path}:{line}: {room} may not import {module}")
    assert not wrong, "\n".join(wrong)


def test_the_package_and_its_command_line_import_no_jax():
    code = "import sys, videoauto_jax, videoauto_jax.cli.main as cli; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "jax was imported"


def test_every_public_name_exists():
    import videoauto_jax

    for name in videoauto_jax.__all__:
        assert getattr(videoauto_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        videoauto_jax.load_modle  # noqa: B018


def test_every_folder_of_code_is_a_package():
    listed = (ROOT / "setup.cfg").read_text()
    for folder in {path.parent for path in FILES}:
        parts = folder.relative_to(ROOT).parts
        name = ".".join(parts if parts[0] == "videoauto_jax" else ("videoauto_jax", *parts))
        assert (folder / "__init__.py").exists() and f"    {name}\n" in listed, name
