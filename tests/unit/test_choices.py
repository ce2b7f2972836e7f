"""Parts that a method chooses: names, nested options, and options that have no effect."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest

from ostinato.choices import Choice, Options, Part, Share, Size
from ostinato.config import build_config, parse_overrides
from ostinato.contract import CHECKS, Case, ContractViolation
from ostinato.errors import InputError
from ostinato.lookup import get_method, methods
from ostinato.methods.base import Method
from ostinato.registry import check_options, defaults_of, parts_of


class Square(Options, frozen=True):
    """Four sides."""

    name: Literal["square"] = "square"
    side: Size = 3
    layers: tuple[int, ...] = (0, 6)


class Circle(Options, frozen=True):
    """None."""

    name: Literal["circle"] = "circle"
    radius: Share = 0.5


class Other(Options, frozen=True):
    """Of no choice."""

    name: Literal["circle"] = "circle"


SHAPES = Choice(Square(), Circle(radius=0.25))


class Shaped(Method):
    """Draws.

    Args:
        shape: what.
        rank: how.
    """

    name = "shaped"

    def __init__(self, backbone, *, shape: Annotated[Part, SHAPES] = "square", rank: int = 1) -> None:
        super().__init__(backbone)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("square", Square()),
        ({"side": 5}, Square(side=5)),
        ({"name": "square", "layers": 4}, Square(layers=(4,))),
        ("circle", Circle(radius=0.25)),
        ({"name": "circle", "radius": 1}, Circle(radius=1.0)),
        (Circle(radius=0.75), Circle(radius=0.75)),
    ],
)
def test_a_name_a_mapping_and_typed_options_say_the_same(value, want):
    assert SHAPES.read(value, "method.shape") == want
    assert check_options(Shaped, {"shape": value}) == {"shape": dict(want), "rank": 1}
    again = check_options(Shaped, check_options(Shaped, {"shape": value}, depth=12), depth=6)
    assert again["shape"] == dict(want), "what is written out is given"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("line", r"method\.shape must be one of \['square', 'circle'\], got 'line'"),
        ({"name": ["x"]}, r"method\.shape must be one of .*, got \['x'\]"),
        (3, r"method\.shape must be one of .* with options or without, got 3"),
        (Other(), r"method\.shape must be one of .*, got Other"),
        ({"radius": 0.5}, r"method\.shape\.radius has no effect with method\.shape=square: .* of method\.shape=circle"),
        ({"name": "circle", "side": 3}, r"method\.shape\.side has no effect with method\.shape=circle: .*=square"),
        ({"sied": 3}, r"method\.shape\.sied: unknown key\. Did you mean 'side'"),
        ({"side": 0}, r"method\.shape\.side: .*greater than or equal to 1, got 0"),
        ({"layers": ["x"]}, r"method\.shape\.layers\.0: .*got 'x'"),
        ({"side\n": 1}, r"method\.shape\.'side\\n': unknown key"),
    ],
)
def test_wrong_parts_are_named(value, message):
    with pytest.raises(InputError, match=message) as error:
        check_options(Shaped, {"shape": value})
    assert str(error.value).isprintable()


def test_an_option_of_a_part_that_is_given_to_the_method_is_pointed_to_the_part():
    with pytest.raises(InputError, match=r"method\.radius: .* method\.shape=circle method\.shape\.radius=VALUE"):
        check_options(Shaped, {"radius": 0.5})


def test_default_layers_of_a_part_are_taken_in_proportion():
    assert check_options(Shaped, {}, depth=4)["shape"]["layers"] == (0, 2)
    assert check_options(Shaped, {"shape": {"layers": [0, 6]}}, depth=12)["shape"]["layers"] == (0, 6)
    assert check_options(Shaped, {"shape": Square(layers=(3,))}, depth=4)["shape"]["layers"] == (3,)


def test_defaults_are_plain_values():
    assert defaults_of(Shaped) == {"shape": {"name": "square", "side": 3, "layers": (0, 6)}, "rank": 1}
    assert [part.name for part in parts_of(Shaped)["shape"]] == ["square", "circle"]


def options_of(*layers):
    return build_config({"method": {"name": "soft_tf"}}, *layers).method.options()


@pytest.mark.parametrize(
    ("layers", "want"),
    [
        ([["method.base=l2p", "method.base.top_k=5"]], {"name": "l2p", "top_k": 5}),
        ([["method.base.top_k=5", "method.base=l2p"]], {"name": "l2p", "top_k": 5}),
        ([["method.base=l2p"], ["method.base.top_k=5"]], {"name": "l2p", "top_k": 5}),
        (
            [["method.base=l2p", "method.base.top_k=5"], ["method.base.pgp=0.5"]],
            {"name": "l2p", "top_k": 5, "pgp": 0.5},
        ),
        ([["method.base=l2p", "method.base.top_k=5"], ["method.base=l2p"]], {"name": "l2p", "top_k": 5}),
        ([["method.base=l2p", "method.base.top_k=5"], ["method.base=none"]], "none"),
        (
            [["method.base=l2p", "method.base.top_k=5"], ["method.base=dualprompt", "method.base.e_length=3"]],
            {"name": "dualprompt", "e_length": 3},
        ),
        ([["method.base.e_length=3"], ["method.base=dualprompt"]], {"name": "dualprompt", "e_length": 3}),
        ([["method.base=l2p"], ["method.base=none"]], "none"),
    ],
)
def test_options_of_a_part_go_with_the_part(layers, want):
    assert options_of(*(parse_overrides(words) for words in layers)) == {"base": want}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.base=l2p", "method.base=none"], r"method\.base is given twice"),
        (["method.base.top_k=1", "method.base.top_k=2"], r"method\.base\.top_k is given twice"),
        (["method.layers=1", "method.layers.x=2"], r"'layers' already has the plain value 1"),
        (["data.path=x", "data.path.y=2"], r"'path' already has the plain value 'x'"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        parse_overrides(words)


@pytest.mark.parametrize("name", ["soft_tf", "wsn", "lora", "adapter"])
def test_no_option_is_without_effect_under_a_base(name):
    cls = get_method(name)
    for base in ("dualprompt", "l2p", "clip_pgp", "none"):
        parts = {part.name: part.own() for part in parts_of(cls)["base"]}
        for other in parts:
            for option in set(parts[other]) - set(parts[base]):
                with pytest.raises(InputError, match=rf"has no effect with method\.base={base}"):
                    check_options(cls, {"base": {"name": base, option: parts[other][option]}})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "layer_grouped",
            {"fusion": "uniform", "temperature": 0.1},
            r"=0\.1 has no effect .*method\.fusion=soft_query",
        ),
        (
            "layer_grouped",
            {"temperature": 0.1},
            r"method\.temperature=0\.1 has no effect with method\.fusion=soft_model",
        ),
        ("layer_grouped", {"fusion": "sum", "fusion_in_training": False}, r"soft_model or method\.fusion=soft_query"),
        ("layer_grouped", {"root": False, "bottleneck": 3}, r"method\.bottleneck=3 .*, or change method\.root"),
        ("lieprompt", {"layer_topk": 0, "add_num": 3}, r"method\.add_num=3 has no effect with method\.layer_topk=0"),
        ("lieprompt", {"test_gate": "soft", "off": "absent"}, r"or set method\.test_gate=hard or .*=soft_masked"),
        ("cl_lora", {"kd": 0.0, "tau": 1.0}, r"method\.tau=1\.0 has no effect with method\.kd=0\.0"),
        ("cl_lora", {"block_weights": False, "ortho": 1.0}, r"method\.ortho=1\.0 has no effect"),
        ("mbpa", {"adapt": "none", "steps": 3}, r"method\.steps=3 has no effect with method\.adapt=none"),
    ],
)
def test_options_without_effect_beside_another_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        check_options(get_method(name), options)


def test_defaults_without_effect_are_no_error():
    given = {"fusion": "uniform", "temperature": 0.05}
    assert check_options(get_method("layer_grouped"), given)["temperature"] == 0.05
    for name, cls in methods().items():
        for option, (other, without) in cls.no_effect.items():
            assert {option, other} <= set(defaults_of(cls)), name
            assert check_options(cls, {other: without[0]})[option] == defaults_of(cls)[option]


def test_the_contract_asks_for_the_options_of_parts_to_be_explained():
    (check,) = [check for check in CHECKS if check.__name__.startswith("every_option_has_a_default")]
    with pytest.raises(ContractViolation, match=r"method\.shape\.side is missing from Attributes of Square"):
        check(Case(Shaped, "image"))
    for cls in methods().values():
        check(Case(cls, "image"))
