"""The rules of the code base, held."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.paths import ROOT

HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "tokenizers", "gguf", "accelerate"}
HEAVY |= {"xllamacpp", "matplotlib", "psutil", "peft", "segno"}
MODULES = sorted([*ROOT.glob("kit/**/*.py"), *ROOT.glob("scripts/**/*.py")])
# From the ground up: a module imports those of its own wing, and of what stands before it.
GROUND = ["errors", "paths", "files", "settings", "reports"]
WINGS = ["environment", "net", "formats", "models", "hub", "engines", "offline", "verify", "doctor", "bench"]
WINGS += ["tune", "serve", "batch"]
# What a room below may look at and no more: `offline` needs the network, not the Hub.
STRANGERS = {("offline", "hub")}


def names_of(path: Path, level: str = "all") -> set[str]:
    """The modules that a file imports; level "top" leaves out what functions and TYPE_CHECKING import."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if level == "all" else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(path: Path) -> str:
    """`kit/net/get.py` -> `kit.net.get`, `kit/net/__init__.py` -> `kit.net`"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph(root: str) -> dict[str, set[str]]:
    """Every module below `root`, with those that it imports, wherever in the file."""
    paths = {dotted(path): path for path in MODULES if path.is_relative_to(ROOT / root)}
    # `from kit.net import get` names the package too, which is no more than a docstring.
    return {
        name: {other for other in names_of(path) if other in paths and other != name} for name, path in paths.items()
    }


def room(name: str) -> str:
    """`kit.net.get` -> `net`, `kit.files` -> `files`"""
    return name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_and_weight_of_imports(path):
    everywhere, top = names_of(path), names_of(path, "top")
    if path.is_relative_to(ROOT / "kit"):
        assert not [name for name in everywhere if name.split(".")[0] in ("scripts", "click", "tests")]
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not calls & {"print", "sys.exit", "exit"}
    assert not {name.split(".")[0] for name in top} & HEAVY


def test_every_module_stands_in_a_wing_or_on_the_ground_floor():
    assert len(MODULES) > 60
    assert {room(name) for name in graph("kit") if name != "kit"} == {*GROUND, *WINGS}


@pytest.mark.parametrize("wing", WINGS)
def test_each_wing_says_its_purpose_in_one_line(wing):
    source = (ROOT / "kit" / wing / "__init__.py").read_text()
    assert source.strip() == f'"""{ast.get_docstring(ast.parse(source))}"""'
    assert source.count("\n") == 1
    assert source.strip().endswith('."""')


def test_imports_run_down_the_list_of_wings():
    order = {name: place for place, name in enumerate([*GROUND, *WINGS])}
    upwards = [
        f"{name} imports {other}"
        for name, others in graph("kit").items()
        for other in others
        if "." in name and other != "kit"
        if order[room(other)] > order[room(name)] or (room(name), room(other)) in STRANGERS
    ]
    assert upwards == []


def test_inside_kit_imports_run_without_a_circle():
    left = graph("kit")
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


# Programs in strings, which no import shows: `from kit.x import y; … y.z(`
PROGRAM = re.compile(r"from (kit[\w.]*) import (\w+)(?:; | *\\n)(?:[^\n]*?)\b\2\.(\w+)\(")
WITH_PROGRAMS = [*MODULES, *ROOT.glob("env/*.sh"), ROOT / "env" / "Dockerfile"]


def test_a_string_that_names_a_module_names_one_that_is_there():
    found = [match.groups() for path in WITH_PROGRAMS for match in PROGRAM.finditer(path.read_text())]
    assert len(found) >= 5
    for path in ROOT.glob("tests/*.py"):
        for package, names in re.findall(r"^from (kit[\w.]*) import ([\w, ]+)$", path.read_text(), re.MULTILINE):
            found += [(package, name.split()[0], "__doc__") for name in names.split(",")]
    for package, name, attribute in found:
        holder = importlib.import_module(package)
        module = getattr(holder, name, None) or importlib.import_module(f"{package}.{name}")
        assert hasattr(module, attribute), f"{package}.{name}.{attribute}"


METHODS = {"pipeline", "manual", "llamacpp"}


def texts(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outside_the_engines_nothing_compares_a_methods_name(path):
    """What a method does differently stands in its engine: no if, no match, no table keyed by names elsewhere."""
    if path.is_relative_to(ROOT / "kit" / "engines"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        compared: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        elif isinstance(node, ast.Dict):
            compared = [key for key in node.keys if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".startswith", ".endswith", ".index")):
            compared = [*node.args]
        assert not METHODS & set().union(*map(texts, compared)), f"line {getattr(node, 'lineno', 0)}"
        assert not [each for each in compared if re.search(r"methods\.[A-Z]\w*\.method", ast.unparse(each))]


def test_importing_every_module_imports_nothing_heavy():
    names = [dotted(path) for path in MODULES]
    program = (
        f"import sys\nbare = set(sys.modules)\nfor name in {names}: __import__(name)\nprint(*sys.modules.keys() - bare)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not set(loaded.split()) & HEAVY


def test_one_source_of_truth_for_the_room_that_an_environment_needs():
    from kit.doctor import before_venv

    (shell,) = re.findall(r"^NEEDED_MB=(\d+)", (ROOT / "env" / "bootstrap.sh").read_text(), re.MULTILINE)
    assert int(shell) * 1_000_000 == before_venv.NEEDED_FOR_VENV


def test_ci_runs_what_the_readme_tells_a_person_to_run():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for runner in ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15"):
        assert re.search(rf"\b{re.escape(runner)}\b", workflow)
    assert ".ci/run" in workflow
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^ *make (\S+)", script, re.MULTILINE) == [
        *("lint", "test", "test-as-mac", "test-as-arm", "setup", "test-slow", "docker-test")
    ]
    assert "REQUIRE_DOCKER=1" in script


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make (?:-s )?([a-z][a-z-]+)", (ROOT / page).read_text()))
    assert named <= targets


def test_each_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    assert {f"]({path.name})" for path in ROOT.glob("docs/*.md") if path.name != "index.md"} <= set(
        re.findall(r"\]\([^)]+\)", index)
    )


def test_each_picture_is_small_stands_in_a_page_and_says_what_it_shows():
    shown = {}
    for page in PAGES:
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", (ROOT / page).read_text()):
            shown[((ROOT / page).parent / target).resolve()] = words
    pictures = set(ROOT.glob("docs/*.png"))
    assert pictures
    assert pictures <= set(shown)
    for path, words in shown.items():
        assert len(words) > 20, path
        assert path.stat().st_size < 200_000, path
