"""The text form of recipes: what it means, and what is said, with the column, of what means nothing."""

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from absdom import registry
from absdom.domain import Layers, Meet, Recipe
from absdom.errors import UsageError
from absdom.plan.recipes import parse_recipe


@dataclass(frozen=True)
class Knobs(Recipe):
    """A recipe with an argument of every type."""

    of: Recipe | None = None
    count: int = 1
    size: float = 0.5
    word: str = "plain"
    flag: bool = False
    mode: Literal["a", "b-c"] = "a"
    limit: int | None = None
    path: tuple[float, ...] = ()
    name: ClassVar[str] = "knobs"

    def __post_init__(self):
        if self.count < -5:
            raise UsageError(f"count {self.count} is below -5")


def _two(first: Recipe, second: Recipe, *, share: float = 0.5) -> Recipe:
    return first & second


def _open(**values) -> Recipe:
    return Knobs(word=str(sorted(values.items())))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    registry.recipes()
    found = {"test-knobs": Knobs, "test-two": _two, "test-open": _open}
    monkeypatch.setattr(registry, "_recipes", {**registry._recipes, **found})


def names(*words: str) -> list:
    return [registry.recipes()[w]() for w in words]


def test_names_meets_and_parentheses():
    crown, ibp, cap = names("crown", "ibp", "cap")
    assert parse_recipe(" crown ") == parse_recipe("(crown)") == crown
    assert parse_recipe("crown-ibp") == parse_recipe("crown_ibp") == names("crown-ibp")[0]
    assert parse_recipe("crown & ibp") == Meet((crown, ibp))
    assert parse_recipe("crown & ibp & cap") == crown & ibp & cap
    assert parse_recipe("crown & (ibp & cap)") == crown & (ibp & cap)


def test_arguments_by_name_and_by_place():
    linear, (ibp,) = registry.recipes()["linear"], names("ibp")
    assert parse_recipe("linear(pre=interval, slope=parallel)") == linear(pre=ibp, slope="parallel")
    assert parse_recipe("linear(interval, 'parallel')") == linear(ibp, "parallel")
    assert parse_recipe("linear(\n  pre = linear(pre=ibp, slope=flat) & ibp,\n)") == linear(linear(ibp, "flat") & ibp)
    assert parse_recipe("linear(pre=None)") == linear()
    ascent = parse_recipe("ascent(crown, steps=3, share=boxes)")
    assert (ascent.of, ascent.steps, ascent.share) == (*names("crown"), 3, "boxes")
    assert parse_recipe("alpha-crown(steps=3)") == parse_recipe("ascent(crown, steps=3)")
    assert parse_recipe("test-two(crown, ibp, share=1)") == parse_recipe("crown & ibp")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("count=-3", {"count": -3}),
        ("count=+3, size=-1e-3", {"count": 3, "size": -1e-3}),
        ("size=2", {"size": 2.0}),
        ("size=.5e+1", {"size": 5.0}),
        ("size=inf", {"size": math.inf}),
        ("size=-inf", {"size": -math.inf}),
        ("word=some-word", {"word": "some-word"}),
        ("word=crown", {"word": "crown"}),
        ("word='two words - and a # sign'", {"word": "two words - and a # sign"}),
        ('word="it\'s"', {"word": "it's"}),
        ("flag=True", {"flag": True}),
        ("mode='b-c'", {"mode": "b-c"}),
        ("mode=b-c", {"mode": "b-c"}),
        ("limit=None", {"limit": None}),
        ("limit=-1", {"limit": -1}),
        ("path=(1, -2.5)", {"path": (1, -2.5)}),
        ("path=[1]", {"path": (1,)}),
        ("crown-ibp & cap", {"of": Meet(())}),
    ],
)
def test_values(text, values):
    found = parse_recipe(f"test-knobs({text})")
    if "of" in values:
        values = {"of": parse_recipe("crown-ibp & cap")}
    assert found == Knobs(**values)
    assert all(type(getattr(found, k)) is type(v) for k, v in values.items())


def test_a_word_is_a_recipe_where_the_argument_is_one():
    assert parse_recipe("test-knobs(of=crown, word=crown)") == Knobs(of=names("crown")[0], word="crown")
    # Without a type, a name that is known is a recipe, and any other is a word.
    assert parse_recipe("test-open(a=1, b=word)") == Knobs(word="[('a', 1), ('b', 'word')]")
    assert "Interval" in parse_recipe("test-open(a=ibp)").word


def test_layers():
    crown, ibp, knobs = names("crown", "ibp", "test-knobs")
    text = '{"conv-1*": crown, \'*[0-9]\': test-knobs(count=-1), "*": ibp & crown}'
    assert parse_recipe(text) == Layers(
        (("conv-1*", crown), ("*[0-9]", Knobs(count=-1)), ("*", ibp & crown)),
    )
    assert parse_recipe(f"linear(pre={text}) & ibp").parts[0].pre == parse_recipe(text)
    assert parse_recipe('test-knobs({"*": test-knobs})').of == Layers((("*", knobs),))


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("linear(pre=intervl)", 12, "there is no 'intervl'; did you mean 'interval'? there are: auto, "),
        ("  crwn-ibp", 3, "there is no 'crwn-ibp'; did you mean 'crown-ibp'?"),
        ("crown-ibp & test-knobs(of=x)", 27, "there is no 'x'; there are: auto, "),
        ("crown & auto", 9, "'auto' is a choice between methods, made by verify and bound, and stands alone there"),
        ("linear(pree=interval)", 8, "'linear' has no 'pree'; did you mean 'pre'? it takes: pre, slope"),
        ("crown(steps=3)", 7, "'crown' has no 'steps'; it takes no arguments"),
        ("linear(ibp, pre=ibp)", 13, "'linear' is given 'pre' twice"),
        ("linear(ibp, flat, 3)", 19, "'linear' has no room for '3'; it takes: pre, slope"),
        ("ascent(steps=3)", 1, "'ascent' needs 'of'; it takes: of, steps"),
        ("test-two(ibp, ibp, 3)", 20, "'test-two' has no room for '3'; it takes: first, second, share"),
        ("test-knobs(count=2.5)", 18, "count is a whole number, not 2.5"),
        ("test-knobs(count=True)", 18, "count is a whole number, not True"),
        ("test-knobs(count=crown-ibp)", 18, "count is a whole number, not crown-ibp"),
        ("test-knobs(size='1')", 17, "size is a number, not '1'"),
        ("test-knobs(size=- 'x')", 17, "is no recipe"),
        ("test-knobs(flag=yes)", 17, "flag is True or False, not yes"),
        ("test-knobs(mode=c)", 17, "mode is one of a, b-c, not c"),
        ("test-knobs(limit=2.5)", 18, "limit is a whole number or None, not 2.5"),
        ("test-knobs(crown, count=-6)", 25, "count -6 is below -5"),
        ("linear(slope=steep)", 14, "slope 'steep' is not one of adaptive, parallel, flat"),
        ("linear(pre=3)", 12, "pre is a recipe or None, not 3"),
        ("ascent(interval)", 8, "of is a recipe of the kind Dual, not interval"),
        ("ascent(crown, steps=-1)", 21, "steps -1 is not a whole number of 0 or above"),
        ("{conv: crown}", 2, 'a pattern of layers stands in quotes, such as "conv*", not conv'),
        ('{"a": crown, "a": ibp}', 14, "the pattern 'a' stands here twice"),
        ('{"a-b": crown, "*": crwn}', 21, "there is no 'crwn'; did you mean 'crown'?"),
        ("linear(pre=interval", 7, "'(' was never closed"),
        ("crown & & ibp", 9, "this cannot be read; write e.g."),
        ("crown-", 1, "this cannot be read"),
        ("crown - ibp", 1, "'crown - ibp' is no recipe"),
        ("crown | ibp", 7, "'|' cannot be read"),
        ("crown.of", 6, "'.of' cannot be read"),
        ("2crown", 1, "'2crown' cannot be read"),
        ("crown # why", 7, "'#' cannot be read"),
        ("'crown'", 1, "is no recipe"),
        ("crown and ibp", 1, "'crown and ibp' is no recipe"),
        ("ibp if crown else cap", 1, "is no recipe"),
        ("crown()()", 1, "'crown()()' is no recipe"),
        ("test-knobs(word='a\\n')", 17, "cannot be read"),
        ("ä & crwn", 1, "there is no 'ä'"),
        ("test-knobs(word='ä', of=crwn)", 25, "there is no 'crwn'"),
    ],
)
def test_errors_name_the_column(text, column, message):
    with pytest.raises(UsageError) as error:
        parse_recipe(text)
    assert str(error.value).startswith(f"method {text!r}: column {column}: "), str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_text(text):
    with pytest.raises(UsageError, match="is empty; write e.g. 'crown'"):
        parse_recipe(text)


@pytest.mark.parametrize("text", ["(" * 400, "linear(" * 400, " & ".join(["crown"] * 5000), "{" * 300, "--" * 3000])
def test_deep_texts_end_in_an_error(text):
    with pytest.raises(UsageError):
        parse_recipe(text)


def test_nothing_in_a_text_runs():
    for text in (
        "__import__('os').system('true')", "crown(__import__)", "[crown for crown in (1,)]", "(lambda: crown)()",
        "test-knobs(**{'count': 1})", "test-knobs(*[crown])", "f'{crown}'", "crown := ibp", "test-knobs(count=10**10)",
        "test-knobs(word=('a' 'b'))()", "crown\x00", "crown; ibp", "b'x'", "1j", "...",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            parse_recipe(text)


def test_any_text_gives_a_recipe_or_a_usage_error():
    choose = random.Random(0)
    pieces = [
        "crown",
        "linear",
        "(",
        ")",
        "pre",
        "=",
        ",",
        "&",
        "{",
        "}",
        "'*'",
        ":",
        "-",
        "3",
        ".5",
        " ",
        "\n",
        "é",
        "\\",
        "[",
        "]",
    ]
    read = 0
    for _ in range(3000):
        text = "".join(choose.choices(pieces, k=choose.randint(1, 7)))
        try:
            assert isinstance(parse_recipe(text), Recipe)
            read += 1
        except UsageError as error:
            assert "method" in str(error)
    assert read > 20


def test_a_meet_of_meets_is_one_meet():
    """So that a strategy in it, which stands alone or in a meet, is found whatever the brackets."""
    texts = ("crown & (partition(ibp) & interval)", "(crown & partition(ibp)) & interval")
    assert {parse_recipe(text) for text in texts} == {parse_recipe("crown & partition(ibp) & interval")}
