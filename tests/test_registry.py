"""env/models.toml: every model, with its pins."""

from __future__ import annotations

import re

import pytest

from kit.errors import KitError, WrongUsage
from kit.models import registry
from scripts.hints import words

SECTION = """
["a-1.5"]
title = "A"
kind = "base"
licence = "MIT"
revision = "1"
context = 8
files = [{ path = "model.safetensors", size = 100, sha256 = "00" }]
"""


def test_the_kits_own_models_are_pinned():
    models = registry.read()
    assert {"starter", "llama-3.2-1b"} <= set(models)
    for model in models.values():
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size for file in model.files)
        assert model.kind in ("base", "instruct", "random")
    assert models["llama-3.2-1b"].size == 2_480_783_094
    assert models["llama-3.2-1b"].kind == "base"
    assert models["starter"].repo_id is None


def test_a_model_is_a_section(tmp_path):
    (tmp_path / "models.toml").write_text(SECTION)
    model = registry.read(tmp_path / "models.toml")["a-1.5"]
    assert (model.weights, model.size, model.wheel) == (100, 100, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[broken", "cannot be read"),
        (SECTION.replace('kind = "base"', ""), "'a-1.5'.*kind"),
        # The dot makes it a section in a section.
        (SECTION.replace('["a-1.5"]', "[a-1.5]"), "stands in quotes"),
    ],
)
def test_a_section_of_another_form_is_named_with_the_way_back(tmp_path, content, says):
    (tmp_path / "models.toml").write_text(content)
    with pytest.raises(KitError, match=says) as caught:
        registry.read(tmp_path / "models.toml")
    assert "git checkout env/models.toml" in words(caught.value.hint)


def test_an_unknown_model_is_refused_with_the_list():
    with pytest.raises(WrongUsage, match=r"'gpt'.*starter, llama-3\.2-1b"):
        registry.find("gpt")


@pytest.mark.parametrize(
    ("name", "near"), [("llama", "llama-3.2-1b"), ("starte", "starter"), ("Smollm2", "smollm2-135m")]
)
def test_an_unknown_model_is_answered_with_the_nearest_name(name, near):
    with pytest.raises(WrongUsage) as caught:
        registry.find(name)
    assert caught.value.hint == (f"MODEL={near}, perhaps",)
