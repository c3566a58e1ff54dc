"""The rules of the house as tests: what a reviewer would otherwise watch for in every change."""

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from layers import ROWS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "taskq"
OWN_CODE = ("taskq", "tests", "workers", "examples", "benchmarks", "scripts", "docs")

DRIVERS = ("pika", "redis", "click", "croniter", "sqlite3", "confluent_kafka")
MAX_MODULES = 160
MAX_IMPORT_S = 0.060
SLACK = 5
"""The budget is for a quiet machine; CI shares its cores."""


def module_name(path: Path) -> str:
    """Return a file's dotted name below the package: `brokers.base`, and "" for taskq itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def row_of(module: str) -> int | None:
    """Return a module's row, None when the table above does not know it."""
    if module in ROWS:
        return ROWS[module]
    parents = module.split(".")[:-1]
    return next(
        (
            ROWS[name]
            for n in range(len(parents), 0, -1)
            if (name := ".".join(parents[:n]) + ".*") in ROWS
        ),
        None,
    )


def walk_runtime(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from walk_runtime(other)
            continue
        yield child
        yield from walk_runtime(child)


def imports_of(path: Path) -> set[str]:
    """Return the modules of taskq that a file imports, inside functions too."""
    found: set[str] = set()
    for node in walk_runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("taskq.") in SOURCES else str(node.module))
    own = {name for name in found if name == "taskq" or name.startswith("taskq.")}
    return {"" if name == "taskq" else name.removeprefix("taskq.") for name in own}


IMPORTS = {module: imports_of(path) for module, path in SOURCES.items()}


def test_imports_point_down() -> None:
    """An import upwards makes two modules one: neither can be read, tested or replaced alone."""
    wrong = []
    for module, imported in IMPORTS.items():
        row = row_of(module)
        assert row is not None, (
            f"taskq.{module} has no row; add it to ROWS and the architecture page"
        )
        wrong += [
            f"taskq.{module} (row {row}) imports taskq.{target} (row {row_of(target)})"
            for target in imported
            if (row_of(target) or 0) > row
        ]

    assert not wrong, "\n".join(wrong)


def test_drivers_do_not_know_each_other() -> None:
    """A broker that reaches into a results store cannot be combined with another."""
    for module, imported in IMPORTS.items():
        kind, _, driver = module.partition(".")
        other = {"brokers": "results.", "results": "brokers."}.get(kind)
        if other and driver not in ("", "base"):
            assert not [name for name in imported if name.startswith(other)], module


def test_there_is_no_import_cycle() -> None:
    """A cycle works until someone imports its other end first."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(IMPORTS.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


def fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_taskq_loads_no_driver() -> None:
    """Every short-lived client and every `--help` pays for what this import loads."""
    loaded: list[str] = json.loads(
        fresh_python(
            "import sys; bare = set(sys.modules); import taskq, json\n"
            "print(json.dumps(sorted(set(sys.modules) - bare)))"
        )
    )

    drivers = [name for name in loaded if name.split(".")[0] in DRIVERS]

    assert not drivers
    assert len(loaded) <= MAX_MODULES, f"{len(loaded)} modules: {loaded}"


def test_importing_taskq_is_quick() -> None:
    """60 ms of CPU over a bare interpreter: the best of seven, with slack for a slow machine."""
    timed = "import time; t = time.process_time()\n{}\nprint(time.process_time() - t)"
    fresh_python("import taskq")  # compiles the bytecode

    cost_s = min(float(fresh_python(timed.format("import taskq"))) for _ in range(7))

    assert cost_s < MAX_IMPORT_S * SLACK


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because a build leaves its traces beside them."""
    copy = tmp_path_factory.mktemp("checkout") / "taskq"
    skipped = shutil.ignore_patterns(
        ".git",
        ".venv",
        ".*_cache",
        ".hypothesis",
        "__pycache__",
        "*.egg-info",
        "build",
        "dist",
        "_build",
        "taskq.db*",
        ".taskq-*",
    )
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


def build_package(checkout: Path, kind: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", "dist", "."],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pattern = "*.whl" if kind == "wheel" else "*.tar.gz"
    (built,) = (checkout / "dist").glob(pattern)
    return built


def test_the_wheel_holds_the_library_and_nothing_else(checkout: Path) -> None:
    """A top level named `tests` or `workers` would land in everybody's site-packages."""
    with zipfile.ZipFile(build_package(checkout, "wheel")) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith("dist-info/METADATA")]
        text = wheel.read(metadata).decode()

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"taskq"}
    assert "taskq/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert {f"taskq/{path.relative_to(PACKAGE)}" for path in SOURCES.values()} <= set(names)
    assert "Name: taskq-mq" in text


def test_the_source_distribution_is_complete(checkout: Path) -> None:
    """Distributions of Linux build and test from it: what is missing there is missing for them."""
    with tarfile.open(build_package(checkout, "sdist")) as archive:
        members = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
        names = {name for name in members if not name.endswith(".pyc")}

    wanted = {
        str(path.relative_to(checkout))
        for path in checkout.rglob("*")
        if path.is_file() and path.relative_to(checkout).parts[0] in (*OWN_CODE, "workers")
    }
    assert wanted - names == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "docker-compose.yml"} <= names


def all_modules() -> list[ModuleType]:
    names = [item.name for item in pkgutil.walk_packages([str(PACKAGE)], "taskq.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def test_all_exceptions_have_one_root() -> None:
    """`except TaskqError` catches whatever taskq raises on purpose."""
    from taskq.errors import TaskqError

    # What is no Exception is a signal, as KeyboardInterrupt is, and must pass `except TaskqError`.
    defined = {
        value
        for module in all_modules()
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__.startswith("taskq.")
    }

    assert len(defined) > 15
    assert not [kind for kind in defined if not issubclass(kind, TaskqError)]


def test_the_public_names_are_sorted_and_complete() -> None:
    """A name that is imported but not listed is public by accident."""
    import taskq
    import taskq.errors as errors

    public = {
        name
        for name, value in vars(taskq).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TaskqError)
    }

    # `chain` and `task` are functions that share their modules' names.
    listed = set(taskq.__all__)
    assert list(taskq.__all__) == sorted(listed)
    assert public <= listed
    assert raised <= listed
    assert not [name for name in listed if isinstance(getattr(taskq, name), ModuleType)]


CALLED_BY_OTHERS = re.compile(r"\w*|\w+\.base")
"""Modules whose functions users and authors of drivers call; the others serve one package."""

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(tree: ast.Module) -> Iterator[tuple[Documented, bool]]:
    """Yield public classes, functions and methods, and whether a base class may document them."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node, False
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, Documented) and not item.name.startswith("_"):
                        yield item, bool(node.bases)


def parameters(node: Documented) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return []
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


@pytest.mark.parametrize("module", SOURCES, ids=lambda name: name or "taskq")
def test_public_definitions_are_documented(module: str) -> None:
    """What others call explains three parameters and more, in `Args:` or in a sentence."""
    tree = ast.parse(SOURCES[module].read_text())

    assert ast.get_docstring(tree), f"taskq.{module} has no docstring"
    for node, inherited in public_definitions(tree):
        if any("overload" in ast.dump(mark) for mark in node.decorator_list):
            continue
        text = ast.get_docstring(node)
        assert text, f"taskq.{module}: {node.name} has no docstring"
        names = parameters(node) if CALLED_BY_OTHERS.fullmatch(module) else []
        if (
            len(names) >= 3
            and len(node.body) > 3
            and not inherited
            and " see `" not in text.lower()
        ):
            missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
            assert not missing, f"taskq.{module}: {node.name} does not explain {missing}"


def own_files(*suffixes: str) -> list[Path]:
    """Return the repository's own files: what git tracks or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [path for name in OWN_CODE for path in (ROOT / name).rglob("*")]
        paths += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(
        path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)
    )


def test_no_file_is_longer_than_its_budget() -> None:
    """A file that answers one question fits 400 lines; ruff watches the functions."""
    lengths = {path: len(path.read_text().splitlines()) for path in own_files(".py")}

    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 400}


def test_no_module_is_a_drawer_for_everything() -> None:
    """What does not fit a name ends in `utils`, and grows there."""
    drawers = {"utils", "util", "common", "helpers", "manager", "misc"}

    assert not [name for name in SOURCES if drawers & set(name.split("."))]


def test_nothing_is_left_to_do_in_the_code() -> None:
    """An open end belongs into an issue, where someone sees it."""
    marks = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b|\bNotImplemented" r"Error\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in own_files(".py", ".yaml", ".yml", ".cfg", ".sh", "")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if marks.search(line)
    ]

    assert not found, "\n".join(found)


def test_no_file_names_this_machine_or_a_registry() -> None:
    """Such a path works for its author alone; such a host is not reachable from everywhere."""
    machine = re.compile(r"(?<![\w./-])/(?:wo" r"rk|opt/tq|ro" r"ot|ho" r"me)/")
    registry = re.compile(
        r"\b(?:py" r"pi\.org|pythonhos" r"ted\.org|doc" r"ker\.io|gh" r"cr\.io|qu" r"ay\.io)\b"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in own_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if machine.search(line) or registry.search(line)
    ]

    assert not found, "\n".join(found)


def test_every_example_is_run_by_a_test() -> None:
    """An example that nobody runs is wrong within a year."""
    runner = (ROOT / "tests" / "acceptance" / "test_examples.py").read_text()
    examples = [*ROOT.glob("examples/[!_]*.py"), *ROOT.glob("examples/*/main.py")]
    names = {str(path.relative_to(ROOT / "examples")) for path in examples}

    assert names
    assert not [name for name in names if name not in runner and name.split("/")[0] not in runner]
