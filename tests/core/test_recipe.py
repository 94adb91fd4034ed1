"""Recipes as values and as files: what is written is read back, and every mistake is named by its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.contract.recipe import AlgorithmStep, LayerChoice, ModelIdentity, RangeChoice, Recipe, TriedStep
from deploykit.contract.recipe_file import check_writable, dumps, loads

RECIPE = Recipe(
    target="x86-cpu:onnxruntime",
    precision="int8",
    scheme="onnx-x86",
    model=ModelIdentity("Net", "0" * 64, "1" * 64),
    layers=(
        LayerChoice("conv2d", "stem.0", "conv", "int8"),
        LayerChoice("linear", "head", "linear", "float", "4 dB of the noise", chosen=True),
    ),
    ranges=(RangeChoice("relu", "mse"),),
    include=("stem.*",),
    algorithms=(AlgorithmStep("rounds", "2", {"block": 32, "deep": [1, {"b": 2.5}]}), AlgorithmStep("shifts")),
    options={"opset": 21, "names": ["a", "b"], "exact": True},
    ladder=(TriedStep("ptq", "kept", sqnr_db=12.25, drop=0.01, drop_low=-0.005, drop_high=0.02),),
)
TEXT = dumps(RECIPE)

words = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
layers = st.builds(LayerChoice, words, words, words, words, words, st.booleans())


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    RECIPE.write(tmp_path / "deep" / "net.toml")
    assert Recipe.read(tmp_path / "deep" / "net.toml") == RECIPE
    assert Recipe.read(str(tmp_path / "deep" / "net.toml")).fingerprint == RECIPE.fingerprint
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["net.toml"]


def test_a_file_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    wrong: list[Any] = [tmp_path / "folder", tmp_path / "file" / "net.toml", str(tmp_path / "a\0b"), "", "x" * 300]
    for path in wrong:
        with pytest.raises(deploykit.UsageError, match="cannot write"):
            RECIPE.write(path)
        with pytest.raises(deploykit.UsageError, match="cannot write"):
            check_writable(Path(path))
    for call in (RECIPE.write, Recipe.read):
        with pytest.raises(deploykit.UsageError, match="path is 5"):
            call(5)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    check_writable(tmp_path / "deep" / "net.toml")
    assert not (tmp_path / "deep").exists()


def test_it_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    RECIPE.write(tmp_path / "рецепт.toml")
    (tmp_path / "other").touch()
    assert (tmp_path / "рецепт.toml").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(TEXT, encoding="utf-8-sig")
    assert Recipe.read(tmp_path / "net.toml") == RECIPE


def test_a_layer_is_a_line() -> None:
    other = replace(RECIPE, layers=(replace(RECIPE.layers[0], precision="float", reason="x"), RECIPE.layers[1]))
    changed = [pair for pair in zip(TEXT.splitlines(), dumps(other).splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1 and '"conv2d"' in changed[0][0]


@given(st.lists(layers, max_size=4, unique_by=lambda layer: layer.name), st.dictionaries(words, words, max_size=3))
def test_any_text_is_read_back(found: list[LayerChoice], options: dict[str, str]) -> None:
    recipe = replace(RECIPE, layers=tuple(found), options=options)
    assert loads(dumps(recipe)) == recipe


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_figure_is_read_back_exactly(figure: float) -> None:
    recipe = replace(RECIPE, ladder=(TriedStep("ptq", "kept", sqnr_db=figure),))
    assert loads(dumps(recipe)) == recipe


def test_everything_decides_its_fingerprint() -> None:
    changes = {"method": "mse", "exclude": ("a",), "options": {}, "algorithms": (), "ladder": (), "ranges": ()}
    assert len({RECIPE.fingerprint, *(replace(RECIPE, **{k: v}).fingerprint for k, v in changes.items())}) == 7
    assert RECIPE.same_decisions(replace(RECIPE, ladder=()))


def test_what_it_keeps_is_what_it_chose() -> None:
    assert RECIPE.kept == {"linear": "4 dB of the noise"}
    assert replace(RECIPE, layers=(replace(RECIPE.layers[1], precision="int8"),)).kept == {}


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(TEXT.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('kind = "linear"', "kind = 3", '"linear"', "got `int`"),
        (', precision = "float"', "", '"linear"', "missing required field `precision`"),
        ('precision = "float"', 'precison = "float"', '"linear"', "unknown key 'precison'"),
        ('kind = "conv"', 'kind = "conv", precison = "int8"', '"conv2d"', "unknown key 'precison'"),
        ('name = "linear"', 'name = "conv2d"', '"linear"', "stands twice"),
        ("block = 32", "block = 32, block = 4", "block = 32", "line"),
        ("sqnr_db = 12.25", 'sqnr_db = "12"', "sqnr_db", "got `str`"),
        ('method = "mse"', "method = 1", '"relu"', "got `int`"),
        ('method = "default"', "method = 1", "method = ", "got `int`"),
        ("[options]", "[options", "[options]", "line"),
        ('name = "Net"', "name = 5", '"Net"', "$.model.name"),
        ("[options]", "[optoins]", "[options]", "unknown key 'optoins'"),
        ("schema_version = 1", "schema_version = 2", "schema_version", "schema version 2"),
    ],
)
def test_a_mistake_is_named_by_its_line(old: str, new: str, line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(deploykit.UsageError, match=r"net\.toml") as caught:
        Recipe.read(path)
    assert says in str(caught.value) and f"line {line_of(line)}" in str(caught.value)


def test_a_file_that_somebody_wrote_otherwise() -> None:
    text = """
    target = 'a:b'  # [[layers]]
    precision = "int8"
    scheme = "x"
    model = { name = "a", graph = "b", fingerprint = "c" }
    [[layers]]
    name = "one"
    module_path = ""
    kind = "conv"
    precision = "int8"
    [[layers]]
    name = "two"
    module_path = ""
    kind = "conv"
    precision = 8
    """
    with pytest.raises(deploykit.UsageError, match="line 15"):
        loads(text)
    assert [layer.name for layer in loads(text.replace("= 8", '= "int8"')).layers] == ["one", "two"]


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a = 1\nb = \xff")
    (tmp_path / "deep").write_text("a = " + "[" * 5000 + "]" * 5000)
    for name, says in (("binary", "line 2"), ("deep", "not TOML"), ("absent", "cannot read"), (".", "not a regular")):
        with pytest.raises(deploykit.UsageError, match=says):
            Recipe.read(tmp_path / name)
