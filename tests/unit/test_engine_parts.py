"""Seeds, schedules, batches, checkpoints, the training loop and stop requests, each on its own."""

import math
import os
import random
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from ostinato.backbones.weights import load_backbone
from ostinato.config import build_config
from ostinato.contract.tiny_models import random_backbone
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import DataError, InputError, OstinatoError, explained
from ostinato.methods.base import LearnTask, Method, Recipe, Stage
from ostinato.report.console import Reporter
from ostinato.runs.checkpoint import Checkpoint, Checkpoints
from ostinato.runs.lifecycle import start
from ostinato.runs.stopping import stop_on_signal
from ostinato.tensor_files import read_tensors, write_tensors
from ostinato.training.callbacks import Callback
from ostinato.training.divergence import DivergedError
from ostinato.training.loader import fixed_batches, n_batches, training_batches
from ostinato.training.loop import (
    Position,
    Settings,
    learn_task,
    optimizer_tensors,
    restore_optimizer,
)
from ostinato.training.optim import lr_factor, make_optimizer, set_lr
from ostinato.training.precision import compute, prepare, resolve_device
from ostinato.training.seeding import derive, generator, seeded

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, torch.float32, seed=3)
N, WIDTH = 11, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Points(Dataset):
    """Samples that say which they are: x = (index, draw or -1, noise...), y = index modulo 2."""

    def __init__(self, n=N):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, key):
        i, epoch = key if isinstance(key, tuple) else (key, -1)
        x = draw(WIDTH, seed=1000 * i + epoch + 1)
        x[0], x[1] = i, epoch
        return x, i % 2


def task(data=None, index=0, first=0):
    data = data or Points()

    def batches():
        raise AssertionError("not asked for here")
        yield

    return LearnTask(index, range(first, first + 2), data, batches)


# Seeds


def test_seeds_depend_on_every_argument():
    places = [
        (0, "order", 1, 2), (1, "order", 1, 2), (0, "step", 1, 2), (0, "order", 2, 1), (0, "order", 1, 3),
        (0, "order", 3, 2), (0, "order", 1), (0, "order", 1, 2, 3), (12, "order"), (1, "order", 2),
    ]  # fmt: skip
    seeds = [derive(*p) for p in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= s < 2**63 for s in seeds)
    assert seeds == [derive(*p) for p in places]


def test_trailing_zeros_are_positions_too():
    assert len({derive(3, "order"), derive(3, "order", 0), derive(3, "order", 0, 0)}) == 3


def test_purposes_give_unrelated_numbers():
    a, b = (torch.rand(2000, generator=generator(0, purpose, 1)) for purpose in ("order", "evaluation"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.1
    assert torch.equal(a, torch.rand(2000, generator=generator(0, "order", 1)))


def test_seeded_blocks_are_reproducible_and_leave_no_trace():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is what is watched
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with seeded(CPU, 0, "init", 1):
        first = torch.rand(4)
    with seeded(CPU, 0, "init", 1):
        assert torch.equal(first, torch.rand(4))
    with seeded(CPU, 0, "init", 2):
        assert not torch.equal(first, torch.rand(4))
    with pytest.raises(IndexError), seeded(CPU, 0, "init", 1):
        torch.rand(4)[4]
    derive(0, "x")
    generator(0, "x")
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


# Schedules and optimisers


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", {0: 1, 5: 1, 9: 1}),
        ("cosine", {0: 1, 5: 0.5, 9: (1 + math.cos(0.9 * math.pi)) / 2}),
        # Two steps in each of five epochs.
        ("cosine_per_epoch", {0: 1, 1: 1, 2: (1 + math.cos(0.2 * math.pi)) / 2, 7: (1 + math.cos(0.6 * math.pi)) / 2}),
        ("quarter_cosine", {0: 1, 5: math.sqrt(0.5), 9: math.sin(0.05 * math.pi)}),
        ("multistep", {0: 1, 2: 1, 3: 0.1, 6: 0.1, 7: 0.01, 9: 0.01}),
    ],
)
def test_schedules(schedule, want):
    recipe = Recipe(schedule=schedule, milestones=(0.3, 0.7))
    for step, factor in want.items():
        assert lr_factor(recipe, step, 10) == pytest.approx(factor, abs=1e-12), step
    values = [lr_factor(recipe, s, 1000) for s in range(1000)]
    assert values == sorted(values, reverse=True)
    if schedule in ("cosine", "quarter_cosine"):
        assert 0 < values[-1] < 2e-3
    assert lr_factor(recipe, 0, 1) == 1


def test_optimisers_follow_the_recipe():
    params = [nn.Parameter(torch.ones(2))]
    sgd = make_optimizer(Recipe(optimizer="sgd", lr=0.3, momentum=0.7, weight_decay=0.2), params)
    assert type(sgd) is torch.optim.SGD
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.3, "momentum": 0.7, "weight_decay": 0.2,
    }  # fmt: skip
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimizer = make_optimizer(Recipe(optimizer=name, lr=0.3, weight_decay=0.2), params)
        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.3, 0.2)
    set_lr(sgd, 0.01)
    assert [g["lr"] for g in sgd.param_groups] == [0.01]


def test_the_weights_of_the_backbone_have_a_rate_of_their_own():
    head, body = [nn.Parameter(torch.ones(2)) for _ in range(2)], [nn.Parameter(torch.ones(3)) for _ in range(2)]
    recipe = Recipe(optimizer="adamw", lr=0.3, backbone_lr_factor=0.1)
    optimizer = make_optimizer(recipe, [body[0], head[0], body[1], head[1]], body)
    assert [group["params"] for group in optimizer.param_groups] == [head, body]
    for lr in (0.3, 0.5):
        set_lr(optimizer, lr)
        assert [group["lr"] for group in optimizer.param_groups] == [lr, 0.1 * lr]
    assert len(make_optimizer(recipe, head, body).param_groups) == 1
    assert len(make_optimizer(replace(recipe, backbone_lr_factor=1.0), [*head, *body], body).param_groups) == 1
    with pytest.raises(InputError, match=r"train\.backbone_lr_factor must be positive"):
        Recipe(backbone_lr_factor=0.0)


# Batches


def order_of(batches):
    return [x[:, 0].int().tolist() for x, _ in batches]


def flat_order(batches):
    return [i for batch in order_of(batches) for i in batch]


def epoch_batches(epoch=0, start=0, workers=0, seed=3, position=(0, 0), batch_size=4, processes=SINGLE_PROCESS):
    batches = training_batches(
        Points(), batch_size, seed=seed, position=position, epoch=epoch, start=start, device=CPU, workers=workers,
        processes=processes,
    )  # fmt: skip
    return [(x, y) for x, y, share in batches if share]


def test_processes_share_every_batch():
    whole = epoch_batches()
    parts = [epoch_batches(processes=ProcessGroup(rank, 3)) for rank in range(3)]
    together = [sorted(i for b in order_of(part) for i in b) for part in parts]
    assert sorted(i for part in together for i in part) == sorted(i for b in order_of(whole) for i in b)
    for rank in range(8):  # more processes than the last batch has samples
        rows = list(
            training_batches(
                Points(), 4, seed=3, position=(0, 0), epoch=0, start=0, device=CPU, processes=ProcessGroup(rank, 8)
            )
        )  # fmt: skip
        assert len(rows) == len(whole), "every process takes every step"
        assert all(len(x) == 1 for x, _, _ in rows)


def test_an_epoch_gives_every_sample_once_with_its_draw_and_label():
    for epoch in (0, 3):
        batches = epoch_batches(epoch)
        assert [len(y) for _, y in batches] == [4, 4, 3]
        assert len(batches) == n_batches(N, 4)
        x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        assert sorted(x[:, 0].int().tolist()) == list(range(N))
        assert (x[:, 1] == epoch).all()
        assert torch.equal(y, x[:, 0].long() % 2)
        assert x[:, 0].int().tolist() != list(range(N))


def test_orders_differ_by_epoch_seed_and_position():
    orders = [
        order_of(epoch_batches(**place))
        for place in ({}, {"epoch": 1}, {"seed": 4}, {"position": (1, 0)}, {"position": (0, 1)})
    ]
    assert len({str(o) for o in orders}) == len(orders)
    assert orders[0] == order_of(epoch_batches())


def test_the_order_does_not_depend_on_the_batch_size():
    assert flat_order(epoch_batches(batch_size=3)) == flat_order(epoch_batches(batch_size=5))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_starting_later_gives_the_tail_of_the_epoch(start):
    full, tail = epoch_batches(2), epoch_batches(2, start=start)
    assert len(tail) == 3 - start
    for (x, y), (a, b) in zip(full[start:], tail, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_skipped_samples_are_not_loaded():
    class Counting(Points):
        loaded = 0

        def __getitem__(self, key):
            self.loaded += 1
            return super().__getitem__(key)

    data = Counting()
    list(training_batches(data, 4, seed=0, position=(0, 0), epoch=0, start=2, device=CPU))
    assert data.loaded == 3


def test_workers_change_nothing_and_draw_nothing():
    state = torch.get_rng_state()
    for (x, y), (a, b) in zip(epoch_batches(1, start=1), epoch_batches(1, start=1, workers=2), strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert torch.equal(state, torch.get_rng_state())


def test_fixed_batches_keep_the_order_and_draw_nothing_random():
    batches = list(fixed_batches(Points(), 4, device=CPU))
    assert flat_order(batches) == list(range(N))
    assert all((x[:, 1] == -1).all() for x, _ in batches)
    assert order_of(fixed_batches(Points(), 2, device=CPU, order=[5, 0, 7])) == [[5, 0], [7]]
    assert list(fixed_batches(Points(), 4, device=CPU, order=[])) == []


@pytest.mark.parametrize(("n", "size", "want"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 1, 8)])
def test_batches_per_epoch(n, size, want):
    assert n_batches(n, size) == want


# The training loop


class Probe(Method):
    """A small regression with two parameters and a log of everything the loop calls."""

    recipe = Recipe(epochs=2, batch_size=4, lr=0.05)

    def __init__(self, stages=None, noise=0.0):
        super().__init__(nn.Linear(2, 2))
        self.w = nn.Parameter(draw(WIDTH, 3, seed=1) * 0.1)
        self.b = nn.Parameter(torch.zeros(3))
        self.log = []
        self.make_stages = stages
        self.noise = noise
        self.name = "probe"

    def stages(self, task):
        return self.make_stages(self) if self.make_stages else [Stage(self.loss)]

    def begin_task(self, task):
        super().begin_task(task)
        self.log.append("begin")

    def end_task(self, task):
        assert not torch.is_grad_enabled()
        assert not self.training
        self.log.append("end")

    def loss(self, x, y):
        assert self.training
        out = (x / 10) @ self.w + self.b + self.noise * torch.randn(3)
        return {"fit": (out.sum(1) - y).square().mean(), "size": 0.01 * self.w.square().sum()}


class Watch(Callback):
    def __init__(self, method, stop_at=None):
        self.method, self.stop_at = method, stop_at
        self.started, self.steps, self.lrs = [], [], []

    def on_stage_start(self, task, stage, step, steps):
        self.started.append((task, stage.name, step, steps))

    def on_step(self, position, losses, optimizer, n):
        self.steps.append((position.stage, position.step, n))
        self.lrs.append(optimizer.param_groups[0]["lr"])
        self.losses = losses
        if self.stop_at == (position.stage, position.step):
            self.state = {k: v.clone() for k, v in self.method.learned_state().items()}
            self.optimizer = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
            self.position = position
            raise KeyboardInterrupt

    def on_warning(self, text):
        raise AssertionError(text)


def weights(method):
    return torch.cat([method.w.detach().flatten(), method.b.detach()])


def test_steps_learning_rates_and_reports():
    method = Probe()
    watch = Watch(method)
    settings = replace(SETTINGS, overrides={"schedule": "cosine", "lr": 0.2, "epochs": 3})
    assert learn_task(method, task(), settings, watch) > 0
    assert watch.started == [(0, "fit", 0, 9)]
    assert watch.steps == [(0, s + 1, 3 if s % 3 == 2 else 4) for s in range(9)]
    assert watch.lrs == pytest.approx([0.2 * (1 + math.cos(math.pi * s / 9)) / 2 for s in range(9)])
    assert set(watch.losses) == {"fit", "size"}
    assert method.log == ["begin", "end"]
    assert not method.training


def test_a_cosine_per_epoch_changes_with_the_epochs_of_ragged_batches():
    """Ten samples in batches of four are three steps per epoch, the last one smaller."""
    method = Probe()
    watch = Watch(method)
    settings = replace(SETTINGS, overrides={"schedule": "cosine_per_epoch", "lr": 0.2, "epochs": 3})
    learn_task(method, task(), settings, watch)
    assert watch.lrs == pytest.approx([0.2] * 3 + [0.15] * 3 + [0.05] * 3)


def test_first_step_of_sgd_is_the_gradient_of_the_first_batch():
    method, twin = Probe(), Probe()
    settings = replace(SETTINGS, overrides={"optimizer": "sgd", "lr": 0.3, "weight_decay": 0.1})
    watch = Watch(method, stop_at=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        learn_task(method, task(), settings, watch)
    x, y, _ = next(iter(training_batches(Points(), 4, seed=3, position=(0, 0), epoch=0, start=0, device=CPU)))
    losses = twin.train().loss(x, y)
    sum(losses.values()).backward()
    with torch.no_grad():
        for p in (twin.w, twin.b):
            p -= 0.3 * (p.grad + 0.1 * p)
    torch.testing.assert_close(weights(method), weights(twin))
    assert watch.losses == pytest.approx({k: v.item() for k, v in losses.items()}, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["quarter_cosine", "cosine_per_epoch"])
@pytest.mark.parametrize("cut", [1, 3, 5, 6])
def test_a_resumed_stage_takes_the_same_steps(tmp_path, optimizer, schedule, cut):
    """The state goes through the files of a checkpoint; noise in the loss shows that the seeds go on as well."""
    settings = replace(
        SETTINGS, overrides={"optimizer": optimizer, "weight_decay": 0.05, "schedule": schedule, "clip": 0.5}
    )
    whole = Probe(noise=0.1)
    learn_task(whole, task(), settings)
    first = Probe(noise=0.1)
    watch = Watch(first, stop_at=(0, cut))
    with pytest.raises(KeyboardInterrupt):
        learn_task(first, task(), settings, watch)
    assert watch.optimizer
    Checkpoints(tmp_path, "0" * 32).save(Checkpoint(watch.state, watch.optimizer, {}))
    saved = Checkpoints(tmp_path, "0" * 32).latest()
    second = Probe(noise=0.1)
    second.load_learned_state(saved.learned)
    again = Watch(second)
    learn_task(second, task(), settings, again, resume=(watch.position, saved.optimizer))
    assert torch.equal(weights(second), weights(whole))
    assert [s for _, s, _ in again.steps] == list(range(cut + 1, 7))
    assert second.log == ["end"], "a resumed task does not begin again"


def test_without_its_optimiser_state_a_resumed_stage_goes_elsewhere():
    """The test above would pass if the state did not matter; it does."""
    whole, first, second = Probe(), Probe(), Probe()
    learn_task(whole, task(), SETTINGS)
    watch = Watch(first, stop_at=(0, 3))
    with pytest.raises(KeyboardInterrupt):
        learn_task(first, task(), SETTINGS, watch)
    second.load_learned_state(watch.state)
    learn_task(second, task(), SETTINGS, resume=(watch.position, {}))
    assert not torch.equal(weights(second), weights(whole))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimiser_state_round_trip_gives_the_same_next_step(tmp_path, optimizer):
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.01)
    params = [nn.Parameter(draw(3, 2)), nn.Parameter(draw(4, seed=1)), nn.Parameter(draw(1, seed=2))]
    one = make_optimizer(recipe, params)

    def step(optimizer, ps, seed):
        for i, p in enumerate(ps):
            p.grad = None if i == 2 and seed < 5 else draw(*p.shape, seed=seed + i)
        optimizer.step()

    for seed in (1, 2, 3):
        step(one, params, seed)
    stored = write_tensors(tmp_path / "o", optimizer_tensors(one))
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    two = make_optimizer(recipe, copies)
    restore_optimizer(two, read_tensors(tmp_path, stored))
    for seed in (4, 5):
        step(one, params, seed)
        step(two, copies, seed)
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_optimiser_state_of_other_parameters_is_refused():
    optimizer = make_optimizer(Recipe(), [nn.Parameter(draw(2))])
    with pytest.raises(InputError, match="has 3 parameters, the stage has 1"):
        restore_optimizer(optimizer, {"2.exp_avg": draw(2)})


@pytest.mark.parametrize("pieces", [2, 3, 4, 9])
def test_accumulated_steps_equal_whole_batches(pieces):
    """Batches of 7 and 4 samples do not divide evenly; a constant term must count once."""
    whole, parts = Probe(), Probe()
    settings = replace(SETTINGS, overrides={"batch_size": 7, "optimizer": "sgd", "clip": 0.3})
    a, b = Watch(whole), Watch(parts)
    learn_task(whole, task(), settings, a)
    learn_task(parts, task(), replace(settings, accumulate=pieces), b)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=1e-5)
    assert b.losses == pytest.approx(a.losses, rel=1e-5)
    assert a.steps == b.steps


def test_hooks_are_called_in_order():
    def stages(m):
        def backward(losses):
            m.log.append(("backward", sorted(losses), m.w.grad is None))
            sum(losses.values()).backward()

        def step(optimizer):
            norm = torch.cat([m.w.grad.flatten(), m.b.grad]).norm().item()
            m.log.append(("step", round(norm, 4)))
            optimizer.step()

        return [Stage(m.loss, prepare=lambda: m.log.append("prepare"), backward=backward, step=step)]

    method = Probe(stages)
    settings = replace(SETTINGS, accumulate=2, overrides={"epochs": 1, "batch_size": 8, "clip": 1e-2})
    learn_task(method, task(), settings)
    terms = ["fit", "size"]
    step = [("backward", terms, True), ("backward", terms, False), ("step", 0.01)]
    assert method.log == ["begin", "prepare", *step, *step, "end"]


def test_a_backward_hook_decides_the_gradients():
    def stages(m):
        return [Stage(m.loss, backward=lambda losses: losses["size"].backward())]

    method = Probe(stages)
    learn_task(method, task(), SETTINGS)
    assert not method.b.any(), "only the other term depends on it"
    assert not torch.equal(method.w, Probe().w)


def test_a_step_hook_may_leave_the_optimiser_alone():
    method = Probe(lambda m: [Stage(m.loss, step=lambda optimizer: None)])
    learn_task(method, task(), SETTINGS)
    assert torch.equal(weights(method), weights(Probe()))


def two_stages(m):
    def noted(name):
        def prepare():
            m.log.append(name)
            with torch.no_grad():
                m.b.add_(torch.randn(3))

        return prepare

    return [
        Stage(m.loss, name="one", prepare=noted("first"), params=[m.w]),
        Stage(m.loss, name="two", prepare=noted("second"), params=[m.b], data=Points(5), recipe=Recipe(epochs=3)),
    ]


def test_stages_have_their_own_data_recipe_and_parameters():
    method = Probe(two_stages)
    watch = Watch(method)
    learn_task(method, task(), replace(SETTINGS, overrides={"batch_size": 2}), watch)
    assert watch.started == [(0, "one", 0, 12), (0, "two", 0, 3)]  # train.* is not for stages with a recipe
    assert watch.lrs == [0.05] * 12 + [1e-3] * 3
    assert method.log == ["begin", "first", "second", "end"]


def test_only_the_parameters_of_a_stage_are_optimised():
    method = Probe(lambda m: [Stage(m.loss, params=[m.b])])
    learn_task(method, task(), SETTINGS)
    assert torch.equal(method.w, Probe().w)
    assert method.b.any()


def test_frozen_parameters_are_left_out_by_default():
    method = Probe()
    method.w.requires_grad_(False)
    watch = Watch(method)
    learn_task(method, task(), SETTINGS, watch)
    assert torch.equal(method.w, Probe().w)


@pytest.mark.parametrize(("cut", "prepared"), [((0, 1), ["second"]), ((0, 6), ["second"]), ((1, 1), []), ((1, 3), [])])
def test_prepare_runs_once_also_across_a_resume(cut, prepared):
    whole, first, second = Probe(two_stages), Probe(two_stages), Probe(two_stages)
    learn_task(whole, task(), SETTINGS)
    watch = Watch(first, stop_at=cut)
    with pytest.raises(KeyboardInterrupt):
        learn_task(first, task(), SETTINGS, watch)
    second.load_learned_state(watch.state)
    learn_task(second, task(), SETTINGS, resume=(watch.position, watch.optimizer))
    assert second.log == [*prepared, "end"]
    assert torch.equal(weights(second), weights(whole))


def test_a_loss_that_is_not_a_number_stops_before_the_step():
    class ContractViolation(Probe):
        def loss(self, x, y):
            losses = super().loss(x, y)
            return losses | {"odd": losses["fit"] * math.nan} if len(self.log) > 3 else losses

    method = ContractViolation(lambda m: [Stage(m.loss, step=lambda o: (o.step(), m.log.append("step")))])
    watch = Watch(method, stop_at=(0, 3))
    kept = {}
    watch.on_step = lambda position, losses, optimizer, n: kept.update(w=weights(method), at=position)
    with pytest.raises(DivergedError, match=r"'odd' is not a finite number \(nan\). Lower train.lr \(now 0.05\)"):
        learn_task(method, task(), SETTINGS, watch)
    assert kept["at"] == Position(0, 3)
    assert torch.equal(weights(method), kept["w"])
    assert issubclass(DivergedError, OstinatoError)


def test_training_leaves_global_generators_alone():
    results = []
    for seed in (1, 2):
        method = Probe(two_stages, noise=0.1)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        learn_task(method, task(), SETTINGS)
        assert torch.equal(state, torch.get_rng_state())
        results.append(weights(method))
    assert torch.equal(*results)


def test_settings_override_fields_of_the_recipe():
    recipe = Recipe(epochs=7, lr=0.5)
    assert SETTINGS.recipe(recipe) == recipe
    assert replace(SETTINGS, overrides={"lr": 0.1}).recipe(recipe) == Recipe(epochs=7, lr=0.1)


def test_every_step_of_every_stage_and_task_draws_anew():
    class Drawing(Probe):
        def loss(self, x, y):
            self.log.append(torch.rand(()).item())
            return super().loss(x, y)

    method = Drawing(lambda m: [Stage(m.loss), Stage(m.loss)])
    for i in range(2):
        learn_task(method, task(index=i, first=2 * i), SETTINGS)
    draws = [d for d in method.log if isinstance(d, float)]
    assert len(draws) == len(set(draws)) == 24


# Precision


def test_device_names():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=rf"device: '{name}' cannot be used here"):
            resolve_device(name)


@pytest.mark.parametrize("trains", [False, True])
def test_only_frozen_weights_are_stored_in_bf16(trains):
    method = Method(random_backbone(depth=1), trains_backbone=trains)
    method.own = nn.Parameter(torch.zeros(2))
    prepare(method, CPU, torch.bfloat16)
    assert method.backbone.dtype == (torch.float32 if trains else torch.bfloat16)
    assert method.own.dtype == torch.float32
    assert method.backbone.mean.dtype == torch.float32
    with compute(method, CPU, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu") is trains
    with compute(method, CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")


# Stop requests


@pytest.fixture
def handlers():
    """Handlers of this test's own, put back at its end, that note what reaches them."""
    noted = []
    old = {n: signal.signal(n, lambda number, frame: noted.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    yield noted
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(handlers, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with stop_on_signal() as request:
        assert not request.asked
        os.kill(os.getpid(), number)
        assert request.asked
        assert handlers == []
    assert before == {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}


def test_a_second_interrupt_interrupts_at_once(handlers):
    with stop_on_signal() as request:
        signal.raise_signal(signal.SIGINT)
        assert (request.asked, handlers) == (True, [])
        signal.raise_signal(signal.SIGINT)
        assert handlers == [signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)
        assert handlers == [signal.SIGINT], "a second SIGTERM is still a request"


def test_handlers_come_back_after_an_error(handlers):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_on_signal():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_not_asked(handlers):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_on_signal() as request:
            seen.append((request.asked, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


# Run directories


def test_a_run_counts_what_its_newest_task_trains(tmp_path):
    """Also where a method drops, when the task ends, what it trained: the proxies of CL-LoRA."""
    config = build_config(
        {
            "method": {"name": "cl_lora", "rank": 2, "shared_layers": [0], "specific_layers": [2]},
            "data": {"path": "digits", "limit_per_class": 6, "test_limit_per_class": 2},
            "stream": {"first": 2, "step": 4},
            "train": {"epochs": 1},
        }
    )
    result = start(config, tmp_path / "run", Reporter())
    dim = load_backbone().dim
    factor = 2 * 2 * dim  # for queries and values, of rank 2
    shared, specific, block_weights, proxies = factor, 2 * factor, 3, 4 * dim + 1  # and their scale
    assert result["trainable_parameters"] == shared + specific + block_weights + proxies


# What the machine says


def test_out_of_memory_is_recognised_by_its_own_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    assert "Out of memory" in str(explained(caught.value))
    assert "Out of memory" in str(explained(RuntimeError("CUDA error: out of memory")))
    assert "Out of memory" in str(explained(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")))
    assert explained(RuntimeError("shapes differ")) is None
    assert explained(ValueError("can't allocate memory")) is None


class Unreadable(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return torch.zeros(2), 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [DataError("a.jpg: truncated."), PermissionError(13, "Permission denied", "a.jpg")])
def test_an_error_of_a_sample_is_the_same_with_workers(workers, error):
    with pytest.raises(type(error)) as caught:
        list(fixed_batches(Unreadable(error), 2, device=torch.device("cpu"), workers=workers))
    assert str(caught.value) == str(error)


def test_other_devices_are_refused():
    with pytest.raises(InputError, match=r"'meta' (is not supported|cannot be used)"):
        resolve_device("meta")
