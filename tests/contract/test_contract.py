"""What must hold for every registered method, whatever its paper, on images, on texts and on CLIP.

That each method learns is tested on real digits in ``tests/learn``.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.conftest import random_backbone, random_clip_backbone, random_text_backbone, sentences

from ostinato.backbones import Backbone
from ostinato.engine.precision import prepare
from ostinato.engine.train import Position, Settings, learn_task, optimizer_tensors
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Method, TaskInferring
from ostinato.registry import check_options, methods, options_schema
from ostinato.streams import EvalView, Examples, Source, StreamOptions, TaskStream, TextView, View, arrays
from ostinato.streams.texts import Texts

METHODS = methods()
SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=3, overrides={"epochs": 2, "batch_size": 8})
SIDE = 8
TEXT_VIEW = TextView(random_text_backbone().tokenization)


BACKBONES = {"image": random_backbone, "text": random_text_backbone, "clip": random_clip_backbone}
"""By what the contract calls a kind: samples are images but of "text"."""
KINDS = {kind: type(backbone()) for kind, backbone in BACKBONES.items()}
CASES = [(name, kind) for kind, cls in KINDS.items() for name in METHODS if issubclass(cls, METHODS[name].needs)]
UNMET = [(name, kind) for kind in KINDS for name in METHODS if (name, kind) not in CASES]


FEWER = {"mbpa": {"neighbours": 8}}
"""Options of papers' size that are larger than a toy stream: 32 neighbours are nearly all of its samples."""


def view_of(stream: TaskStream) -> View:
    """How a toy stream's samples are seen."""
    return EvalView(SIDE) if stream.source.modality == "image" else TEXT_VIEW


def toy_texts(n_classes: int, step: int) -> TaskStream:
    train, test = (
        Texts(pa.chunked_array([texts]), lambda i: f"row {i}", np.arange(len(labels)), np.array(labels))
        for texts, labels in (sentences(n_classes, n, seed, own=1.0) for n, seed in ((12, 0), (6, 1)))
    )
    source = Source("toy", [str(c) for c in range(n_classes)], train, test, "none")
    return TaskStream(source, StreamOptions(step=step, validation=0))


def toy_stream(kind: str = "image", n_classes: int = 5, step: int = 2, seed: int = 0) -> TaskStream:
    """Classes are colours and slopes with noise: easy to tell apart, even for random features."""
    if kind == "text":
        return toy_texts(n_classes, step)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for c in range(n_classes):
            angle = 2 * np.pi * c / n_classes
            slope = 0.5 + 0.5 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
            colour = np.array([c % 2, (c // 2) % 2, (c // 4) % 2]) * 0.5 + 0.25
            base = slope[..., None] * 0.5 + colour * 0.5
            images += [np.clip(base + rng.normal(0, 0.03, base.shape), 0, 1) for _ in range(n)]
            labels += [c] * n
        return (np.stack(images) * 255).astype(np.uint8), np.array(labels)

    train, test = draw(12), draw(6)
    source = arrays(train[0], train[1], test[0], test[1], augment="none")
    return TaskStream(source, StreamOptions(step=step, validation=0))


def make(name: str, kind: str = "image", /, backbone: Backbone | None = None, **options) -> Method:
    torch.manual_seed(7)
    cls, backbone = METHODS[name], backbone or BACKBONES[kind]()
    method = cls(backbone, **check_options(cls, options, backbone.arch.depth))
    prepare(method, SETTINGS.device, SETTINGS.dtype)
    return method.eval()


def learn_view(method: Method, stream: TaskStream, i: int) -> LearnTask:
    task = stream.task(i)
    train = task.train
    if method.data_seen == "all":
        train = Examples.concat([stream.task(j).train for j in range(i + 1)])
    plain = train.with_view(view_of(stream))

    def batches(positions=None):
        rows = range(len(plain)) if positions is None else positions
        for start in range(0, len(rows), 8):
            yield plain.collate([plain[j] for j in rows[start : start + 8]])

    return LearnTask(task.index, task.classes, plain, batches, class_names=task.class_names)


def learn(method: Method, stream: TaskStream, upto: int | None = None, settings: Settings = SETTINGS, **more) -> Method:
    for i in range(len(stream) if upto is None else upto):
        learn_task(method, learn_view(method, stream, i), settings, **more)
    return method


def inputs_of(stream: TaskStream, upto: int | None = None) -> torch.Tensor:
    groups = [stream.test(i).with_view(view_of(stream)) for i in range(len(stream) if upto is None else upto)]
    return groups[0].collate([g[j] for g in groups for j in range(len(g))])[0]


def unpadded(x: torch.Tensor) -> torch.Tensor:
    """One sample as it comes by itself: a text without what a batch of longer ones filled it up with."""
    return x if x.ndim > 2 else x[:, x[0] != TEXT_VIEW.tokenization.pad]


@torch.inference_mode()
def scores(method: Method, x: torch.Tensor) -> torch.Tensor:
    return method.eval().scores(x)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def name(case) -> str:
    return case[0]


@pytest.fixture(scope="module")
def kind(case) -> str:
    return case[1]


@pytest.fixture(scope="module")
def stream(kind) -> TaskStream:
    return toy_stream(kind)


@pytest.fixture(scope="module")
def learned(name, kind, stream) -> Method:
    return learn(make(name, kind), stream)


# 1. One sample, one answer


def test_a_score_does_not_depend_on_its_batch(learned, stream):
    x = inputs_of(stream)
    together = scores(learned, x)
    alone = torch.cat([scores(learned, unpadded(x[i : i + 1])) for i in range(len(x))])
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores(learned, x[shuffle]), together[shuffle], atol=1e-5, rtol=1e-4)
    assert learned.protocol == "sample"


def test_every_rule_weighs_every_task_for_each_sample_alone(learned, stream):
    if not isinstance(learned, TaskInferring):
        pytest.skip("it infers no task")
    x = inputs_of(stream)[:7]
    for rule, weigh in learned.rules().items():
        with torch.inference_mode():
            evidence = weigh(x)
            alone = torch.cat([weigh(unpadded(x[i : i + 1])) for i in range(len(x))])
        assert evidence.shape == (len(x), learned.n_tasks), rule
        torch.testing.assert_close(alone, evidence, atol=1e-5, rtol=1e-4, msg=rule)
    with torch.inference_mode():
        assert torch.equal(learned.infer_task(x), learned.task_scores(x).argmax(1))


def test_lookup_changes_nothing(name, kind, learned, stream):
    """A twin with the same state that has never seen an image gives the same scores."""
    x = inputs_of(stream)
    twin = make(name, kind)
    twin.load_learned_state(learned.learned_state())
    torch.testing.assert_close(scores(twin, x), scores(learned, x), atol=1e-6, rtol=1e-5)


# 2. No leak


@pytest.mark.parametrize("name", METHODS)
def test_a_method_never_sees_test_data_or_tasks_at_test(name):
    """All that scores() gets is the input, and all that training gets is the current task's own samples."""
    import inspect

    assert list(inspect.signature(METHODS[name].scores).parameters) == ["self", "x"]
    assert set(LearnTask.__dataclass_fields__) == {"index", "classes", "train", "batches", "world", "class_names"}


# 3. Open-ended


def test_scores_cover_exactly_the_classes_seen(name, kind, stream):
    method = make(name, kind)
    for i, n_seen in enumerate((2, 4, 5)):
        learn_task(method, learn_view(method, stream, i), SETTINGS)
        assert scores(method, inputs_of(stream, i + 1)).shape[1] == n_seen == method.n_seen


def test_what_can_train_does(name, kind, stream):
    """So that counting the parameters that have a gradient counts what is trained."""
    for i in range(2):
        method = learn(make(name, kind), stream, upto=i)
        task = learn_view(method, stream, i)
        method.train()
        method.begin_task(task)
        able = {n for n, p in method.named_parameters() if p.requires_grad}
        given = [stage.params for stage in method.stages(task)]
        trained = {id(p) for params in given for p in params or []}
        if given and None not in given:
            assert {n for n, p in method.named_parameters() if id(p) in trained} == able
        elif not given:
            assert not able, "nothing trains"


class Gradients:
    """A watcher that notes which parameters can train when a stage begins, and which of them get a gradient."""

    def __init__(self, method: Method) -> None:
        self.method, self.able, self.reached = method, set(), set()

    def stage_started(self, *_) -> None:
        for n, p in self.method.named_parameters():
            if p.requires_grad and n not in self.able:
                self.able.add(n)
                p.register_hook(lambda _, n=n: self.reached.add(n))

    def stepped(self, *_) -> None:
        pass


def test_what_can_train_gets_a_gradient(name, kind, stream):
    method = learn(make(name, kind), stream, upto=1)
    gradients = Gradients(method)
    learn_task(method, learn_view(method, stream, 1), SETTINGS, gradients)
    # Fine-tuning a CLIP model on images is given, and counts, what only its texts use.
    towers = ("backbone.text", "backbone.projection") if kind == "clip" and method.trains_backbone else ()
    unread = {n for n in gradients.able if n.startswith(towers)}
    assert gradients.reached == gradients.able - unread


def test_nothing_is_sized_by_a_total(name, kind, stream):
    """The first task is learned alike, whether the stream goes on or not."""
    x = inputs_of(stream, 1)
    alone = TaskStream(stream.source, StreamOptions(tasks=[stream.class_names[:2]], validation=0))
    first = scores(learn(make(name, kind), alone), x)
    assert torch.equal(first, scores(learn(make(name, kind), stream, upto=1), x))


def test_a_task_of_one_class_is_learned(name, kind):
    """Its only class has nothing to be told apart from but the classes before."""
    if name == "zero_shot":
        pytest.skip("it reads the names of classes, which say nothing to random weights")
    stream = toy_stream(kind, 3, 2)
    settings = Settings(
        torch.device("cpu"), torch.float32, seed=0, overrides={"epochs": 12, "batch_size": 8, "lr": 0.01}
    )
    method = learn(make(name, kind, **FEWER.get(name, {})), stream, upto=1, settings=settings)
    test = stream.test(1).with_view(view_of(stream))
    x, _ = test.collate([test[j] for j in range(len(test))])
    learn_task(method, learn_view(method, stream, 1), settings)
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(bool(p.isfinite().all()) for p in trained)
    if name != "joint":  # which needs more epochs for all classes at once
        assert (scores(method, x).argmax(1) == 2).float().mean() > 0.5


def test_tasks_must_continue_the_classes_seen(name, kind, stream):
    method = make(name, kind)
    with pytest.raises(Exception, match="task 0 must start at class 0"):
        method.begin_task(learn_view(method, stream, 1))


# 4. State


def test_all_learned_state_is_in_state_dict(name, kind, learned, stream):
    x = inputs_of(stream)
    state = {k: v.clone() for k, v in learned.learned_state().items()}
    twin = make(name, kind)
    twin.load_learned_state(state)
    assert twin.n_seen == learned.n_seen
    torch.testing.assert_close(scores(twin, x), scores(learned, x), atol=1e-6, rtol=1e-5)


def test_a_frozen_backbone_is_bit_equal_after_training(name, kind, learned):
    if learned.trains_backbone:
        pytest.skip(f"{name} trains its backbone by declaration")
    for key, value in BACKBONES[kind]().state_dict().items():
        assert torch.equal(value, learned.backbone.state_dict()[key]), key
    assert not any(p.requires_grad for p in learned.backbone.parameters())


def test_private_parameters_of_earlier_tasks_are_bit_equal(name, kind, stream):
    from ostinato.nn import PerTask

    method = learn(make(name, kind), stream, upto=1)
    private = {n: m for n, m in method.named_modules() if isinstance(m, PerTask) and m.freeze_old and len(m)}
    before = {n: m[0].detach().clone() for n, m in private.items()}
    learn_task(method, learn_view(method, stream, 1), SETTINGS)
    for n, m in private.items():
        assert torch.equal(m[0], before[n]), n
        assert not m[0].requires_grad


def test_learned_tensors_have_fp32_or_wider(learned):
    for key, value in learned.learned_state().items():
        assert value.dtype in (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool), key


# 5. Same seed, same run; stop anywhere


def test_same_seed_same_run_and_global_generators_untouched(name, kind, stream):
    x = inputs_of(stream)
    first = make(name, kind)
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the global generator is what is watched
    random.seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    learn(first, stream)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    torch.manual_seed(12)
    second = make(name, kind)
    torch.manual_seed(99)
    learn(second, stream)
    assert torch.equal(scores(first, x), scores(second, x))


class Stop(Exception):
    """Raised by a watcher to end training at a chosen step."""


class StopAt:
    """Keeps the state after ``n`` steps and raises."""

    def __init__(self, method: Method, n: int) -> None:
        self.method, self.left = method, n

    def stage_started(self, task, stage, step, steps) -> None:
        pass

    def stepped(self, position: Position, losses, optimizer, n) -> None:
        self.left -= 1
        if self.left == 0:
            self.position = position
            self.state = {k: v.clone() for k, v in self.method.learned_state().items()}
            self.optimizer = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
            raise Stop


@pytest.mark.parametrize("steps", [1, 4])
def test_stopping_inside_a_task_and_going_on_changes_nothing(name, kind, stream, steps):
    """With 24 samples and batches of 8 the steps lie inside the first and the second epoch."""
    x = inputs_of(stream)
    whole = learn(make(name, kind), stream)
    cut = learn(make(name, kind), stream, upto=1)
    watcher = StopAt(cut, steps)
    task = learn_view(cut, stream, 1)
    try:
        learn_task(cut, task, SETTINGS, watcher)
        assert not list(cut.stages(task)), "a method with stages must have been stopped"
    except Stop:
        fresh = make(name, kind)
        fresh.load_learned_state(watcher.state)
        learn_task(fresh, task, SETTINGS, resume=(watcher.position, watcher.optimizer))
        cut = fresh
    learn_task(cut, learn_view(cut, stream, 2), SETTINGS)
    assert torch.equal(scores(cut, x), scores(whole, x))


def test_state_between_tasks_is_enough_to_go_on(name, kind, stream):
    x = inputs_of(stream)
    whole = learn(make(name, kind), stream)
    fresh = make(name, kind)
    fresh.load_learned_state({k: v.clone() for k, v in learn(make(name, kind), stream, upto=2).learned_state().items()})
    learn_task(fresh, learn_view(fresh, stream, 2), SETTINGS)
    assert torch.equal(scores(fresh, x), scores(whole, x))


# 6. One transformer


@pytest.mark.parametrize(("name", "kind"), UNMET)
def test_a_method_says_what_backbone_it_needs(name, kind):
    needs = METHODS[name].needs.kind
    with pytest.raises(
        InputError, match=re.escape(f"method {name} needs {needs}, but the backbone is {KINDS[kind].kind}")
    ):
        make(name, kind)


def test_no_transformer_code_in_methods_and_no_method_names_in_the_engine():
    import inspect
    import pkgutil
    from importlib import import_module

    import ostinato.engine
    import ostinato.evaluation

    for cls in METHODS.values():
        source = inspect.getsource(inspect.getmodule(cls))
        assert not re.search(r"softmax\(|scaled_dot_product|nn\.LayerNorm|MultiheadAttention|\.attn\b", source), cls
    for package in (ostinato.engine, ostinato.evaluation):
        for module in pkgutil.iter_modules(package.__path__):
            text = inspect.getsource(import_module(f"{package.__name__}.{module.name}"))
            for method in METHODS:
                assert not re.search(rf"\b{method}\b", text), f"{module.name} knows {method}"


# Options


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_default_and_is_documented(name):
    schema = options_schema(METHODS[name])
    for option, field in schema.model_fields.items():
        assert not field.is_required(), option
        docs = [cls.__doc__ or "" for cls in METHODS[name].__mro__]  # **more passes on the base's options
        assert any(f"{option}:" in doc for doc in docs), f"{option} is missing from Args"


@pytest.mark.parametrize("name", METHODS)
def test_module_states_source_and_differences(name):
    import inspect

    text = inspect.getmodule(METHODS[name]).__doc__
    assert "Differences from the" in text
