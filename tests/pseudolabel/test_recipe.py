"""The recipe: every value documented, every mistake one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from serpipe.errors import UsageError
from serpipe.pseudolabel.recipe import Recipe, Teacher, load, parse


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


@pytest.mark.parametrize("section", [*sections(Recipe), Teacher], ids=lambda section: section.__name__)
def test_every_value_says_what_it_is_and_where_its_default_comes_from(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, name
        if field.default is None or field.is_required() or field.default_factory is not None:
            continue
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["source"], name


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[agree]\njds = 0.1", "RECIPE_UNKNOWN_KEY", "there is no key agree.jds; did you mean jsd?"),
        ("sead = 1", "RECIPE_UNKNOWN_KEY", "there is no key sead; did you mean seed?"),
        ('[[teachers]]\nmodel = "a"\nlinage = "b"', "RECIPE_UNKNOWN_KEY", "teachers.0.linage; did you mean lineage?"),
        ("[quality]\nspeech = 1.5", "RECIPE_INVALID", "quality.speech: "),
        ("[agree]\njsd = nan", "RECIPE_INVALID", "agree.jsd: "),
        ("[[teachers]]\nweight = 1.0", "RECIPE_INVALID", "teachers.0.model: "),
        ('[[teachers]]\nmodel = "a"\n[[teachers]]\nmodel = "a"', "RECIPE_INVALID", "a model is named twice"),
        ('classes = ["anger", "joy"]', "RECIPE_INVALID", "two or more different ones of anger"),
        ("[select]\nlow = 0.9\nhigh = 0.8", "RECIPE_INVALID", "lower bound"),
        ("seed = ", "RECIPE_UNREADABLE", "is no TOML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(text: str, code: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text, "mine.toml")
    assert error.value.code == code
    assert said in error.value.message
    assert error.value.message.startswith("mine.toml")
    assert "\n" not in error.value.message


def test_the_hash_covers_every_value_and_not_how_it_was_written() -> None:
    assert parse("seed = 0\n[agree]\njsd = 0.150").hash == Recipe().hash
    assert parse("[agree]\njsd = 0.16").hash != Recipe().hash


def test_the_same_recipe_in_yaml_is_the_same_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\nteachers:\n- model: a\nexport:\n  format: kaldi\n")
    assert load(str(path)) == parse('seed = 3\n[[teachers]]\nmodel = "a"\n[export]\nformat = "kaldi"')
    path.write_text("")
    assert load(str(path)) == Recipe()
    path.write_text("agree: {jsd: 0.1")
    with pytest.raises(UsageError, match=r"RECIPE_UNREADABLE: .*is no YAML"):
        load(str(path))
    path.write_text("agree:\n  jds: 0.1\n")
    with pytest.raises(UsageError, match=r"RECIPE_UNKNOWN_KEY: .*agree\.jds; did you mean jsd"):
        load(str(path))


def test_a_file_is_read_and_a_missing_one_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('classes = "C4"\n')
    assert load(str(path)).classes == "C4"
    assert load(None) == Recipe()
    with pytest.raises(UsageError, match="RECIPE_UNREADABLE"):
        load(str(tmp_path / "nowhere.toml"))
