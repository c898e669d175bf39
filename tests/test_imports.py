"""Who may import whom, and what an import may cost."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up: a module imports its own layer and those above it in this list.
# A module that is not named, such as `main`, lies on top.
LAYERS = (
    {"errors", "batch", "state", "files", "regions", "windows"},
    {"named", "parallel", "processes", "recorded"},
    {"losses", "augment", "models", "methods.base", "data"},
    {"parts", "evaluation"},
    {"methods", "reports"},
    {"train"},
    {"importing"},
)
# Packages of the host, which work where no jax is installed.
HOST = ("data", "evaluation", "reports")
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
TENSORFLOW = {"data._tf", "data.pipeline_tf"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.glob("pclseg/**/*.py"))}


def imported_names(nodes):
    """Dotted names in import statements; `from a import b` gives a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nodes_at_runtime(node):
    """All nodes but those under `if TYPE_CHECKING:`."""
    yield node
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from nodes_at_runtime(child)


def imports(module, walk=ast.walk):
    """All names imported anywhere in a module."""
    return set(imported_names(walk(ast.parse(MODULES[module].read_text()))))


def inner_imports(module, walk=ast.walk):
    """Modules of pclseg that a module imports, without the packages around them."""
    names = imports(module, walk) & MODULES.keys()
    around = {name for name in names if any(o.startswith(f"{name}.") for o in names)}
    return names - around - {module, "pclseg"}


def layer(module):
    name = module.removeprefix("pclseg.")
    for depth in (2, 1):
        prefix = ".".join(name.split(".")[:depth])
        for number, layer_names in enumerate(LAYERS):
            if prefix in layer_names:
                return number
    return len(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module):
    above = {name for name in inner_imports(module) if layer(name) > layer(module)}
    assert not above


def test_methods_import_no_model_and_no_data():
    for module in MODULES:
        if module.startswith(("pclseg.methods", "pclseg.parts")):
            packages = {name.split(".")[1] for name in inner_imports(module)}
            assert not packages & {"models", "data"}, module


def test_no_import_cycle():
    graph = {module: inner_imports(module, nodes_at_runtime) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def reachable(module):
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(inner_imports(name, nodes_at_runtime))
    return seen


@pytest.mark.parametrize("package", HOST)
def test_host_packages_reach_no_jax(package):
    modules = [name for name in MODULES if name.startswith(f"pclseg.{package}")]
    assert modules
    for module in modules:
        for inner in reachable(module):
            names = imports(inner, nodes_at_runtime)
            libraries = {name.split(".")[0] for name in names}
            assert not libraries & DEVICE_LIBRARIES, f"{module} reaches {inner}"


def test_tensorflow_is_imported_by_two_files_only():
    users = set()
    for module, path in MODULES.items():
        strings = {
            node.args[0].value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        }
        if any(n.split(".")[0] == "tensorflow" for n in imports(module) | strings):
            users.add(module.removeprefix("pclseg."))
    assert users <= TENSORFLOW


def python(code):
    """Output of `code` in a new interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_of_pclseg_takes_less_than_a_second():
    code = (
        "import time; start = time.perf_counter(); import pclseg;"
        "print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) < 1.0


def test_every_module_imports_where_tensorflow_is_not_installed():
    names = [n for n in MODULES if n.removeprefix("pclseg.") not in TENSORFLOW]
    code = f"""
import importlib, sys
from hide_tensorflow import hide_tensorflow
hide_tensorflow()
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    sys.exit("TensorFlow is still found")
for name in {names!r}:
    importlib.import_module(name)
print("imported", len({names!r}))
"""
    assert python(code).endswith(f"imported {len(names)}\n")


@pytest.mark.parametrize("package", HOST)
def test_host_packages_import_without_jax(package):
    names = [
        name
        for name in MODULES
        if name.startswith(f"pclseg.{package}")
        and name.removeprefix("pclseg.") not in TENSORFLOW
    ]
    code = f"""
import importlib, sys
for library in {sorted(DEVICE_LIBRARIES)!r}:
    sys.modules[library] = None  # its import raises ModuleNotFoundError
for name in {names!r}:
    importlib.import_module(name)
print("imported", len({names!r}))
"""
    assert python(code).endswith(f"imported {len(names)}\n")
