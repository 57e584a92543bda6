"""Who may import whom: the table of docs/architecture.md, read as data and enforced with `ast`."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

OPEN = {"config", "errors", "systems", "keras_unigan"}


def read_table():
    """Rows of docs/architecture.md: module -> (modules it may import, third-party packages)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.split("## Who may import whom")[1].splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    return {
        module.strip(" `"): (set(inside.split()), set(outside.split()))
        for module, inside, outside in cells
    }


TABLE = read_table()


def sources():
    """All (module, path) of the installed package, `pipelines/` and `serving/` mapped in."""
    for folder, prefix in (
        ("keras_unigan", ""),
        ("pipelines", "pipelines"),
        ("serving", "serving"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [p for p in path.relative_to(ROOT / folder).with_suffix("").parts]
            parts = [p for p in parts if p != "__init__"]
            module = ".".join([prefix, *parts] if prefix else parts) or "keras_unigan"
            yield module, path


def imports(path):
    """All absolute module names that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def row(module):
    """The table's row for a module: that of its longest prefix."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in TABLE:
            return TABLE[".".join(parts[:end])]
    raise AssertionError(f"{module} is in no row of docs/architecture.md: add it there, or move it")


def fits(name, allowed):
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def violations(module, path):
    """Imports of one file that the table does not allow."""
    inside, outside = row(module)
    modules = {m for m, _ in sources()}
    for name, line in imports(path):
        top = name.split(".")[0]
        if top == "keras_unigan":
            # `from keras_unigan import data` names a room; `… import __version__` does not.
            wanted = name.removeprefix("keras_unigan").lstrip(".")
            wanted = wanted if fits(wanted, modules) else "keras_unigan"
            good = fits(wanted, OPEN | inside | {module})
        else:
            good = top in sys.stdlib_module_names or top in outside
        if not good:
            yield f"{path.name}:{line}: {module} may not import {name}"


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=lambda v: str(v))
def test_imports_follow_the_table(module, path):
    assert list(violations(module, path)) == []


def test_the_table_has_no_rows_for_rooms_that_do_not_exist():
    modules = {m for m, _ in sources()}
    assert {k for k in TABLE if k not in modules} == set()


def test_a_wrong_arrow_is_found(tmp_path):
    wrong = tmp_path / "losses.py"
    wrong.write_text("import grpc\nfrom keras_unigan.models import segan\n")
    assert len(list(violations("losses", wrong))) == 2
    wrong.write_text("from keras_unigan.data import records\n")
    assert len(list(violations("data.nifti", wrong))) == 1


def test_import_is_light():
    code = (
        "import sys, keras_unigan, keras_unigan.cli, keras_unigan.data.cases;"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'grpc', 'matplotlib'};"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
