"""Every hint of the code base, rendered as it is typed natively and outside the container."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from kit import settings
from kit.errors import Command
from kit.paths import ROOT
from scripts.hints import outside_container, typed, words

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
MODULES = sorted([*ROOT.glob("kit/**/*.py"), *ROOT.glob("scripts/*.py")])
# What works outside the container without the image: of reports, bundles and the registry, with the kit's environment.
OF_THE_CLONE = {
    "compare",
    "readiness",
    "bundle",
    "mirror",
    "add-model",
    "node",
    "notebook",
    "lock",
    "variables",
    "docker-run",
} | {*("export", "models", "remove")}


def commands() -> list[tuple[str, Command]]:
    """Every Command in the code, with values for what is computed there, and where it stands."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Command" and path.name != "hints.py":
                verb = ast.literal_eval(node.args[0])
                values = {
                    each.arg or "MODEL": str(each.value.value) if isinstance(each.value, ast.Constant) else "x"
                    for each in node.keywords
                }
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", Command(verb, **values)))
    return found


FOUND = commands()


def test_they_are_all_there():
    assert len(FOUND) > 90


@pytest.mark.parametrize(("place", "command"), FOUND, ids=[place for place, _ in FOUND])
def test_a_hint_names_a_verb_and_variables_that_it_takes(place, command):
    for verb in command.verb.split():
        assert verb in TARGETS
    taken = {variable.name for verb in command.verb.split() for variable in settings.taken_by(verb)}
    assert set(command.variables) <= taken
    assert typed(command).startswith(f"make {command.verb}")


@pytest.mark.parametrize(("place", "command"), FOUND, ids=[place for place, _ in FOUND])
def test_outside_the_container_a_hint_works_there(place, command):
    said = outside_container(command)
    native = command.variables.get("DEVICE") == "mps" or "RECORD" in command.variables or command.verb in OF_THE_CLONE
    if said.startswith("make "):
        verb, *given = said.removeprefix("make ").split()
        assert verb in TARGETS
        assert verb.startswith("docker-") or native, said
        names = {pair.split("=")[0] for pair in given if re.match(r"[A-Z_]+=", pair)}
        assert names <= {variable.name for variable in settings.taken_by(verb)}, said
    else:
        assert said.startswith(("docker ", "see docs/"))


def test_a_hint_is_in_the_words_of_whoever_called(monkeypatch):
    hint = ("free some room, then: ", Command("setup"), ", or ", Command("run", PROMPT="The capital of $x"))
    assert words(hint) == "free some room, then: make setup, or make run PROMPT='The capital of $x'"
    monkeypatch.setenv("KIT_CONTAINER", "1")
    assert words(hint).startswith(
        "free some room, then: make docker-download MODEL=starter, or make docker-run PROMPT="
    )


def literals(path: Path) -> list[tuple[int, str]]:
    """The texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


# Texts that are no hints: what is written into files, help, and a line that leaves its values to the reader.
TEXTS = {
    "kit/environment/resolve.py",
    "kit/offline/write.py",
    "kit/settings.py",
    "scripts/bundle.py",
    "scripts/variables.py",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_is_typed_out(path):
    verbs = "|".join(sorted(TARGETS, key=len, reverse=True))
    if str(path.relative_to(ROOT)) in TEXTS:
        return
    for line, text in literals(path):
        assert not re.search(rf"(?<!for )\bmake ({verbs})\b", text), f"line {line}: {text}"


def test_a_hint_keeps_to_the_model_that_was_typed(monkeypatch):
    from scripts import hints

    monkeypatch.setattr(hints, "typed_model", "other")
    assert hints.words([Command("run", METHOD="manual")]) == "make run MODEL=other METHOD=manual"
    assert hints.words([Command("run", MODEL="starter")]) == "make run MODEL=starter"
    assert hints.words([Command("setup")]) == "make setup"
    assert hints.words([Command("run", FROM="reports/x.json")]) == "make run FROM=reports/x.json"


def test_a_refusal_with_a_model_typed_names_that_model(script):
    done = script("run", "--model", "smollm2-135m", "--dtype", "float32", "--method", "llamacpp")
    assert "METHOD=pipeline" in done.err
    assert "MODEL=smollm2-135m" in done.err
