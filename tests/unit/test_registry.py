"""Names of methods and the schemas of their constructors."""

from typing import Literal

import pytest

from ostinato import lookup, registry
from ostinato.errors import InputError
from ostinato.lookup import get_method, methods
from ostinato.methods.base import Method
from ostinato.methods.l2p import L2P
from ostinato.registry import check_options, options_schema, register


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Registrations of a test end with it."""
    methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


class Toy(Method):
    def __init__(
        self,
        backbone,
        *,
        rate: float,
        rank: int = 4,
        layers: tuple[int, ...] = (0, 1),
        kind: Literal["a", "b"] = "a",
        scale: float | None = None,
        on: bool = True,
    ) -> None:
        super().__init__(backbone)


# Names


def test_built_in_methods_are_found_in_order():
    names = list(methods())
    assert names == sorted(names)
    assert {"simplecil", "l2p", "dualprompt", "coda_prompt", "finetune", "joint"} <= set(names)
    assert get_method("l2p") is L2P
    assert all(cls.name == name for name, cls in methods().items())


def test_unknown_methods_get_a_hint():
    with pytest.raises(InputError, match=r"there is no 'l2q'. Did you mean 'l2p'"):
        get_method("l2q")
    with pytest.raises(InputError, match=r"there is no 'zzzzzz'. Known: adapter, aligned, aper, bic, cl_lora"):
        get_method("zzzzzz")


def test_registering_makes_a_name_known():
    class Mine(Method):
        pass

    assert register("mine")(Mine) is Mine
    assert get_method("mine") is Mine
    assert Mine.name == "mine"


def test_a_name_belongs_to_one_class():
    class First(Method):
        pass

    class Second(Method):
        pass

    register("mine")(First)
    register("mine")(First)  # a module that is imported again
    with pytest.raises(InputError, match=r"the name 'mine' is taken by .*First"):
        register("mine")(Second)
    assert get_method("mine") is First
    with pytest.raises(InputError, match=r"the name 'l2p' is taken by .*L2P"):
        register("l2p")(Second)


def test_a_name_belongs_to_one_class_of_one_module():
    other = type("L2P", (Method,), {"__module__": "somebody.elses", "__qualname__": "L2P"})
    with pytest.raises(InputError, match="is taken"):
        register("l2p")(other)


def test_entry_points_are_loaded(monkeypatch):
    asked = []

    class Point:
        def load(self):
            @register("plugged")
            class Plugged(Method):
                pass

            return Plugged

    def entry_points(*, group):
        asked.append(group)
        return [Point()]

    monkeypatch.setattr(lookup, "entry_points", entry_points)
    assert get_method("plugged").name == "plugged"
    assert asked == ["ostinato.methods"]


# Options


def test_a_broken_package_stops_nobody_elses_methods(monkeypatch):
    class ContractViolation:
        name, value = "theirs", "their.package:Method"

        def load(self):
            raise ImportError("no module named 'their.dependency'")

    monkeypatch.setattr("ostinato.lookup.entry_points", lambda group: [ContractViolation()])
    with pytest.warns(UserWarning, match="'theirs' of their.package:Method cannot be loaded: no module"):
        assert get_method("simplecil").name == "simplecil"


def test_default_layers_that_an_encoder_has_not_are_asked_for():
    with pytest.raises(InputError, match=r"method\.e_layers: an encoder of 2 layers leaves none .*g_layers has \[0\]"):
        check_options(get_method("dualprompt"), {}, depth=2)
    assert check_options(get_method("dualprompt"), {"e_layers": [1]}, depth=2)["e_layers"] == (1,)


def test_the_constructor_is_the_schema():
    fields = options_schema(Toy).model_fields
    assert list(fields) == ["rate", "rank", "layers", "kind", "scale", "on"]
    assert [name for name, field in fields.items() if field.is_required()] == ["rate"]
    assert fields["layers"].annotation == tuple[int, ...]
    l2p = ["pool_size", "length", "top_k", "pull", "readout", "pgp", "pgp_keys"]
    assert list(options_schema(L2P).model_fields) == l2p


def test_a_constructor_that_passes_more_on_has_its_bases_options_as_well():
    class Over(Toy):
        """Own default for the rank.

        Args:
            top: its own.
        """

        def __init__(self, backbone, *, top: int = 1, rank: int = 9, **more) -> None:
            super().__init__(backbone, rank=rank, **more)

    fields = options_schema(Over).model_fields
    assert list(fields) == ["top", "rank", "rate", "layers", "kind", "scale", "on"]
    assert fields["rank"].default == 9

    class Closed(Toy):
        """Passes nothing on."""

        def __init__(self, backbone, *, top: int = 1) -> None:
            super().__init__(backbone, rate=top)

    assert list(options_schema(Closed).model_fields) == ["top"]


def test_defaults_are_filled_in_and_types_converted():
    want = {"rate": 0.5, "rank": 4, "layers": (0, 1), "kind": "a", "scale": None, "on": True}
    assert check_options(Toy, {"rate": 0.5}) == want
    got = check_options(Toy, {"rate": 1, "layers": [2, 3], "kind": "b", "on": False, "scale": 2})
    assert got == want | {"rate": 1.0, "layers": (2, 3), "kind": "b", "on": False, "scale": 2.0}
    assert isinstance(got["rate"], float)
    assert isinstance(got["layers"], tuple)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1, "rnak": 3}, r"method.rnak: unknown key. Did you mean 'rank'"),
        ({"rate": 1, "zzzzzzz": 3}, r"method.zzzzzzz: unknown key. Known: kind, layers, on, rank, rate, scale"),
        ({"rate": 1, "rank": 2.5}, r"method.rank: .*got 2.5"),
        ({"rate": 1, "rank": "many"}, r"method.rank: .*integer.*got 'many'"),
        ({"rate": 1, "layers": [0, "x"]}, r"method.layers.1: .*got 'x'"),
        ({"rate": 1, "layers": True}, r"method.layers"),
        ({"rate": 1, "kind": "c"}, r"method.kind: .*'a' or 'b', got 'c'"),
        ({}, r"method.rate: Field required"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        check_options(Toy, options)


def test_methods_without_options_take_none():
    assert check_options(get_method("simplecil"), {}) == {}
    with pytest.raises(InputError, match=r"method\.top_k: unknown key"):
        check_options(get_method("simplecil"), {"top_k": 3})


@pytest.mark.parametrize("depth", [3, 4, 5, 6, 12, 24])
@pytest.mark.parametrize(("name", "below", "above"), [
    ("dualprompt", "g_layers", "e_layers"),
    ("cl_lora", "shared_layers", "specific_layers"),
])  # fmt: skip
def test_layers_that_a_paper_keeps_apart_stay_apart(name, below, above, depth):
    options = check_options(methods()[name], {}, depth)
    assert options[below]
    assert max(options[below]) < min(options[above])
    given = check_options(methods()[name], {above: [0]}, depth)
    assert given[above] == (0,), "what is given stays as it is"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1, "rank": "x" * 10**6}, r"method\.rank: .*got 'x+"),
        ({"rate": 1 << 20000}, r"method\.rate: .*got an integer of 20001 bits"),
        ({"rate": 1, "x\n\x1b[2J" * 9999: 3}, r"method\.'x\\n"),
        ({"rate": 1, "": 3}, r"method\.'': unknown key"),
        ({"rate": 1, "layers": [[[[["x"] * 10**5]]]]}, r"method\.layers\.0: "),
        ({"rate": 1, "on": "\ud800\0"}, r"method\.on: "),
    ],
)
def test_messages_about_odd_options_are_one_bounded_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        check_options(Toy, options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800
