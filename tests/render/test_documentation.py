"""What is written for people is there, and true: docstrings, examples, pillar.example."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import salt.config
import salt.loader
import yaml

ROOT = Path(__file__).parents[2]
FUNCTIONS = [
    (kind, path.stem, node)
    for kind in ("_modules", "_states", "_runners")
    for path in sorted((ROOT / kind).glob("*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]
MODULES = sorted({(kind, module) for kind, module, _ in FUNCTIONS})
EACH = pytest.mark.parametrize(("kind", "module"), MODULES, ids=["/".join(one) for one in MODULES])


def public(kind, module):
    """Return the public functions of a module: (function, docstring)."""
    found = [function for one, other, function in FUNCTIONS if (one, other) == (kind, module)]
    return [(function, inspect.cleandoc(ast.get_docstring(function) or "")) for function in found]


def has_example(kind, module, function, text):
    name = f"{module}.{function.name}"
    if kind != "_states":
        return "CLI Example:" in text and name in text.partition(".. code-block:: bash")[2]
    example = inspect.cleandoc(text.partition(".. code-block:: yaml")[2])
    return f"{name}:" in example and isinstance(yaml.safe_load(re.sub(r"\{\{.*?\}\}", "x", example)), dict)


@EACH
def test_every_public_function_has_an_example(kind, module):
    assert [function.name for function, text in public(kind, module) if not has_example(kind, module, function, text)] == []


@EACH
def test_every_argument_is_documented(kind, module):
    missing = []
    for function, text in public(kind, module):
        names = [argument.arg for argument in function.args.args + function.args.kwonlyargs]
        headings = {name for line in re.findall(r"^([a-z_0-9, ]+)$", text, re.M) for name in line.split(", ")}
        missing += [(function.name, name) for name in names if name not in headings and f"``{name}``" not in text]
    assert missing == []


@pytest.fixture(scope="module")
def runners():
    """The runners of a master whose configuration leads to the checkout."""
    return salt.loader.runner({**salt.config.master_config(None), "runner_dirs": [str(ROOT / "_runners")]})


@EACH
def test_every_public_function_is_callable_through_salts_loader(node, runners, kind, module):
    loader = {"_modules": node.modules, "_states": node.compiler.states, "_runners": runners}[kind]
    assert [function.name for function, _ in public(kind, module) if f"{module}.{function.name}" not in loader] == []


@pytest.mark.parametrize("kind", ["_modules", "_runners"])
def test_nothing_but_the_documented_functions_is_public(node, runners, kind):
    documented_names = {f"{module}.{function.name}" for known, module, function in FUNCTIONS if known == kind}
    loaded = {name for name in {"_modules": node.modules, "_runners": runners}[kind] if name.startswith("k8s_")}
    assert loaded == documented_names


def test_every_module_has_a_line_in_the_map():
    text = (ROOT / "docs/architecture.md").read_text()
    found = re.findall(r"^\| `(_\w+/\w+\.py)` \| (minion|master|both) \| \S", text, re.M)
    there = [f"{kind}/{path.name}" for kind in ("_modules", "_states", "_runners") for path in (ROOT / kind).glob("*.py")]
    assert sorted(name for name, _ in found) == sorted(there)


def keys(tree, path=""):
    for key, value in (tree or {}).items():
        yield f"{path}:{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{path}:{key}")


def test_pillar_example_has_every_key_of_the_defaults_and_no_other(defaults):
    example = yaml.safe_load((ROOT / "pillar.example").read_text())
    assert list(example) == ["kubernetes_controller"]
    expected = set(keys({key: value for key, value in defaults.items() if key != "version"}))
    found = set(keys(example["kubernetes_controller"]))
    assert (sorted(expected - found), sorted(found - expected)) == ([], [])


def test_pillar_example_is_the_defaults(defaults):
    example = yaml.safe_load((ROOT / "pillar.example").read_text())["kubernetes_controller"]
    assert example == {key: value for key, value in defaults.items() if key != "version"}


@pytest.fixture
def of_system_tests(monkeypatch):
    """Return a function that imports a module of the system tests, which needs no node."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/system"))
    return importlib.import_module


def test_the_fault_table_of_the_docs_is_that_of_the_tests(of_system_tests):
    assert of_system_tests("faults.table").markdown() in (ROOT / "docs/operations.md").read_text()


def test_the_deviations_of_the_docs_are_those_of_the_tests(of_system_tests):
    hardening, text = of_system_tests("hardening"), (ROOT / "docs/security.md").read_text()
    assert hardening.deviations() in text
    assert hardening.points() in text


def test_every_automated_check_of_the_benchmark_is_in_the_table_once(of_system_tests):
    hardening = of_system_tests("hardening")
    ids = [str(row["id"]) for row in hardening.rows()]
    assert len(ids) == len(set(ids))
    assert {str(row["id"]) for row in hardening.rows() if not row.get("manual")} == hardening.automated()


def test_the_kube_bench_configuration_names_the_default_places(of_system_tests, resolve):
    components = resolve()["components"]
    expected = {f"/etc/systemd/system/{name}.service" for name in components} | {"/var/lib/etcd"}
    expected |= {f"{components[name]['home']}/live/kubeconfig" for name in ("kube-scheduler", "kube-controller-manager")}
    assert set(of_system_tests("hardening").kube_bench_paths()) == expected
