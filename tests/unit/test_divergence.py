"""Training that goes wrong says so: losses that explode, numbers that are not finite, gradients that reach nothing."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from tests.unit.test_engine_parts import SETTINGS, Points, Probe, draw, task
from torch import nn
from torch.nn import functional as F

from ostinato.contract import kinds_of
from ostinato.contract.harness import SETTINGS as LESSONS
from ostinato.contract.harness import Stop, StopAt, learn, make
from ostinato.contract.tiny_models import BACKBONES, tiny_stream
from ostinato.errors import OstinatoError
from ostinato.lookup import methods
from ostinato.methods.base import Recipe, Stage
from ostinato.training.callbacks import Callback, Position, Seen
from ostinato.training.divergence import DivergedError
from ostinato.training.loop import learn_task

STOP = replace(SETTINGS, on_divergence="stop")


class Told(Callback):
    """Keeps what it is warned of."""

    def __init__(self):
        self.texts = []

    def on_warning(self, text):
        self.texts.append(text)


class Scripted(Probe):
    """Its loss is worth what a list says, step by step; its gradient is that of the probe's loss."""

    def __init__(self, values, gradient=1.0, recipe=None):
        super().__init__(lambda m: [Stage(m.loss, name="main", recipe=recipe)])
        self.values, self.gradient = list(values), gradient
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))  # learned state, so that it resumes

    def loss(self, x, y):
        fit = self.gradient * super().loss(x, y)["fit"]
        value = self.values[int(self.at)]
        self.at += 1
        return {"fit": fit - fit.detach() + value}


def taught(values, settings=SETTINGS, **options):
    told, method = Told(), Scripted(values, **options)
    learn_task(method, task(), settings, told)
    return told.texts


# Losses that explode


def test_a_loss_that_explodes_is_said_once_per_stage():
    said = taught([2.5, 3, 250, 251, 2000, 3])
    assert said == [
        "task 1, stage 'main', step 4: the loss explodes, to 251 after 2.5 in the first step. "
        "Lower train.lr (now 0.05), or set train.clip."
    ]


@pytest.mark.parametrize("first", [0.01, -5.0, 1.0])
def test_small_losses_may_grow_to_a_hundred(first):
    assert taught([first, 2, 3, 100, 99, 100]) == []
    assert len(taught([first, 2, 3, 101, 99, 100])) == 1


def test_a_stage_that_begins_where_another_exploded_is_said_to_have():
    assert taught([9e4] * 6) == []
    (text,) = taught([2e5] * 6)
    assert text.startswith("task 1, stage 'main', step 1: the loss explodes, to 2e+05. Lower train.lr")


def test_every_stage_and_task_is_held_against_its_own_beginning():
    method, told = Scripted([1, 2, 3, 4, 5, 600, 60, 700, 800, 900, 1000, 7000]), Told()
    for i in range(2):
        learn_task(method, task(index=i, first=2 * i), SETTINGS, told)
    assert [text.split(":")[0] for text in told.texts] == [
        "task 1, stage 'main', step 6",
        "task 2, stage 'main', step 6",
    ]


def test_the_way_out_names_what_can_be_changed():
    values = [1, 500, 1, 1, 1, 1]
    (clipped,) = taught(values, replace(SETTINGS, overrides={"clip": 0.5, "lr": 0.1}))
    assert clipped.endswith("Lower train.lr (now 0.1) or train.clip (now 0.5).")
    (fixed,) = taught(values, recipe=Recipe(epochs=2, batch_size=4, lr=0.2))
    assert fixed.endswith("Lower train.lr of the stages before, or the method's rate of this one (0.2).")


def test_a_run_may_stop_where_a_loss_explodes():
    method, told = Scripted([1, 2, 3000, 4, 5, 6]), Told()
    before = {}
    told.on_step = lambda *_: before.update(w=method.w.detach().clone())
    with pytest.raises(DivergedError, match=r"step 3: the loss explodes, to 3e\+03 after 1 in .* Lower train.lr \(now"):
        learn_task(method, task(), STOP, told)
    assert told.texts == []
    assert torch.equal(method.w, before["w"]), "before the step"


def test_a_run_that_was_told_to_stop_at_nothing_does_not():
    assert taught([1, 2, 3, 4, 5, 6], STOP) == []


# Numbers that are not finite


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("settings", [SETTINGS, STOP])
def test_a_loss_that_is_not_finite_always_stops(bad, settings):
    with pytest.raises(
        DivergedError, match=r"task 1, stage 'main', step 2: the loss term 'fit' is not a finite number"
    ):
        taught([1, bad, 1, 1, 1, 1], settings)


class Steep(Probe):
    """Its loss is finite and its gradient is not, from the fourth step on."""

    def __init__(self, bad, where="w"):
        super().__init__()
        self.bad, self.where, self.calls = bad, where, 0

    def loss(self, x, y):
        self.calls += 1
        losses = super().loss(x, y)
        p = getattr(self, self.where)
        if self.calls > 3:
            p.register_hook(lambda g: torch.full_like(g, self.bad))
        return losses


@pytest.mark.parametrize("where", ["w", "b"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("overrides", [{}, {"clip": 1.0}, {"optimizer": "sgd"}])
def test_a_gradient_without_a_norm_stops_before_the_step(where, bad, overrides):
    """Also one whose norm fp32 cannot hold: what an optimiser makes of it is no training."""
    method, told = Steep(bad, where), Told()
    with pytest.raises(DivergedError, match=r"step 4: the gradient's norm is not a finite number \((nan|inf)\). Lower"):
        learn_task(method, task(), replace(SETTINGS, overrides=overrides), told)
    assert all(bool(p.isfinite().all()) for p in method.parameters())


def test_gradients_that_a_method_keeps_apart_are_looked_at_as_well():
    apart = [torch.zeros(3)]

    def backward(losses):
        sum(losses.values()).backward()
        apart[0] = torch.tensor([1.0, torch.nan])

    method = Probe(lambda m: [Stage(m.loss, backward=backward, gradients=lambda: apart)])
    with pytest.raises(DivergedError, match="step 1: the gradient's norm is not a finite number"):
        learn_task(method, task(), SETTINGS, Told())


# Parameters after the last step, whose effect no loss shows


def stepping(step, values=(1,) * 6):
    """Its parameter of three numbers is changed by a function of it and of the steps done; its loss is as scripted."""
    method = Scripted(values)
    method.make_stages = lambda m: [Stage(m.loss, name="main", step=lambda _: step(m.b.data, int(m.at)), params=[m.b])]
    return method


def ending(value):
    """What a parameter is in the end."""
    return lambda b, n: b.fill_(value) if n == 6 else None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("settings", [SETTINGS, STOP])
def test_parameters_that_the_last_step_breaks_are_not_kept(bad, settings):
    told, reached = Told(), []
    told.on_step = lambda position, *_: reached.append(position.step)
    where = (
        r"task 1, stage 'main': the norm of the trained parameters is not a finite number \((nan|inf)\) after the last"
    )
    with pytest.raises(DivergedError, match=where):
        learn_task(stepping(ending(bad)), task(), settings, told)
    assert reached == [1, 2, 3, 4, 5], "no checkpoint holds them"


def test_parameters_that_explode_are_said():
    told = Told()
    learn_task(stepping(ending(99)), task(), STOP, told)
    assert told.texts == []
    learn_task(stepping(ending(-101)), task(), SETTINGS, told)
    assert told.texts == [
        "task 1, stage 'main': the trained parameters explode, to 101 in their root mean square after the last step. "
        "Lower train.lr (now 0.05), or set train.clip."
    ]
    reached = []
    told.on_step = lambda position, *_: reached.append(position.step)
    with pytest.raises(DivergedError, match=r"parameters explode, .* With train.on_divergence=warn training goes on."):
        learn_task(stepping(ending(-101)), task(), STOP, told)
    assert reached == [1, 2, 3, 4, 5]


def test_one_warning_is_enough_for_a_stage():
    told = Told()
    learn_task(stepping(ending(1e4), [1, 500, 1, 1, 1, 1]), task(), SETTINGS, told)
    assert [text.split(" explode")[0] for text in told.texts] == ["task 1, stage 'main', step 2: the loss"]


# Gradients that reach nothing


def test_a_stage_without_gradients_is_said():
    (text,) = taught([1] * 6, gradient=0.0)
    assert text.startswith("task 1, stage 'main': no gradient reached the trained parameters, so nothing was learned")
    assert taught([1] * 6, STOP, gradient=0.0) == [text], "which is no divergence"


def test_a_parameter_without_a_gradient_is_none():
    method, told = Probe(), Told()
    method.idle = nn.Parameter(torch.ones(2))
    learn_task(method, task(), replace(SETTINGS, overrides={"clip": 0.1}), told)
    assert told.texts == []
    none = Probe(lambda m: [Stage(m.loss, backward=lambda losses: None)])
    learn_task(none, task(), replace(SETTINGS, overrides={"clip": 0.1}), told)
    assert [text.split(":")[0] for text in told.texts] == ["task 1, stage 'fit'"]


def test_one_gradient_in_a_stage_is_enough():
    class Flat(Scripted):
        def loss(self, x, y):
            self.gradient = float(self.at == 2)
            return super().loss(x, y)

    method, told = Flat([1] * 6), Told()
    learn_task(method, task(), SETTINGS, told)
    assert told.texts == []


# Resuming


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize(
    ("values", "gradient"),
    [([2, 300, 1, 1, 1, 1], 1.0), ([3, 1, 1, 299, 301, 400], 1.0), ([1] * 6, 0.0), ([9e4, 1, 99, 9e5, 1, 9e5], 0.0)],
)
def test_a_resumed_stage_warns_of_the_same_as_a_whole_one(values, gradient, n):
    whole = taught(values, gradient=gradient)

    class Cut(StopAt):
        def __init__(self, method, n):
            super().__init__(method, n)
            self.texts = []

        def on_warning(self, text):
            self.texts.append(text)

    first, second, after = Scripted(values, gradient), Scripted(values, gradient), Told()
    cut = Cut(first, n)
    with pytest.raises(Stop):
        learn_task(first, task(), SETTINGS, cut)
    second.load_learned_state(cut.state)
    seen = Seen(**asdict(cut.position.seen))  # through a checkpoint
    at = Position(cut.position.stage, cut.position.step, seen)
    learn_task(second, task(), SETTINGS, after, resume=(at, cut.optimizer))
    assert cut.texts + after.texts == whole


@pytest.mark.parametrize("n", range(1, 7))
def test_a_resumed_stage_sees_to_its_parameters_as_a_whole_one(n):
    first, second, told = stepping(ending(1e4)), stepping(ending(1e4)), Told()
    cut = StopAt(first, n)
    cut.on_warning = told.on_warning
    with pytest.raises(Stop):
        learn_task(first, task(), SETTINGS, cut)
    second.load_learned_state(cut.state)
    learn_task(second, task(), SETTINGS, told, resume=(cut.position, cut.optimizer))
    assert len(told.texts) == 1


def test_a_position_is_a_place_whatever_was_seen():
    assert Position(0, 3, Seen(1.0, True, True)) == Position(0, 3)


# Every method


UNTRAINED = {"simplecil", "slda", "ranpac", "fecam", "zero_shot"}
"""They optimise nothing, so that no learning rate harms them."""


class Heard(Exception):
    """What the first warning says."""


class Once(Callback):
    """Stops at the first warning, which is all that is asked for."""

    def on_warning(self, text):
        raise Heard(text)


def test_what_optimises_nothing_is_left_out_rightly():
    class Steps(Callback):
        def on_stage_start(self, task, stage, step, steps):
            raise AssertionError(stage.name)

    for name in UNTRAINED:
        kind = kinds_of(methods()[name])[0]
        learn(make(name, kind), tiny_stream(kind), callback=Steps())


@pytest.mark.parametrize("policy", ["warn", "stop"])
@pytest.mark.parametrize("size", [8, 99])
@pytest.mark.parametrize("name", sorted(set(methods()) - UNTRAINED))
def test_no_method_takes_a_rate_of_a_million_in_silence(name, size, policy):
    """For most the loss explodes in the second step, where there is one; otherwise parameters are seen to.

    So are those of ``clip_pgp``: its prompts pass a layer norm before anything is made of them, and its loss stays
    small however long they are.
    """
    kind = kinds_of(methods()[name])[0]
    overrides = {**LESSONS.overrides, "lr": 1e6, "batch_size": size, "epochs": 1 if size > 8 else 2}
    settings = replace(LESSONS, on_divergence=policy, overrides=overrides)
    with pytest.raises((DivergedError, Heard), match=r"task 1, stage '\w+'.*: the .*Lower train.lr") as caught:
        learn(make(name, kind, BACKBONES[kind](depth=6)), tiny_stream(kind), upto=1, settings=settings, callback=Once())
    assert policy == "warn" or caught.type is DivergedError
    assert issubclass(DivergedError, OstinatoError)


@pytest.mark.parametrize("name", sorted(set(methods()) - UNTRAINED))
def test_no_method_is_warned_of_where_it_learns(name):
    """Its last task is of a single class."""
    kind, told = kinds_of(methods()[name])[0], Told()
    learn(make(name, kind, BACKBONES[kind](depth=6)), tiny_stream(kind), callback=told)
    assert told.texts == []


# Results are what they were


@pytest.mark.parametrize("clip", [None, 0.3, 1e9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_results_are_those_of_a_plain_loop_bit_by_bit(clip, optimizer):
    """Loss, gradient, ``clip_grad_norm_`` and step, as every other toolbox has them."""
    data, w, b = Points(8), nn.Parameter(draw(6, 3, seed=1) * 0.1), nn.Parameter(torch.zeros(3))
    x, y = torch.stack([data[i, 0][0] for i in range(8)]), torch.tensor([data[i][1] for i in range(8)])

    def stages(m):
        def loss(*_):
            return {"ce": F.cross_entropy(x @ m.w + m.b, y)}

        return [Stage(loss)]

    method = Probe(stages)
    idle = method.idle = nn.Parameter(torch.ones(1))
    overrides = {"clip": clip, "optimizer": optimizer, "lr": 0.1, "batch_size": 8, "epochs": 5}
    learn_task(method, task(data), replace(SETTINGS, overrides=overrides))
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    plain = kind([w, b], 0.1, **({} if optimizer == "adam" else {"momentum": 0.9}))
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(x @ w + b, y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([w, b, idle], clip)
        plain.step()
    assert torch.equal(method.w, w)
    assert torch.equal(method.b, b)
