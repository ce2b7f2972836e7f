"""The contract, on every registered method and every kind of encoder that it works on.

What must hold is in ``ostinato.contract.checks``. That each method learns is tested on real digits in ``tests/learn``.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import replace
from importlib import import_module

import pytest

import ostinato.evaluation
import ostinato.runs
import ostinato.training
from ostinato.contract import CHECKS, Case, DoesNotApply, kinds_of
from ostinato.contract.harness import learn_task_of, make, scores
from ostinato.contract.tiny_models import BACKBONES
from ostinato.errors import InputError
from ostinato.lookup import methods
from ostinato.methods.base import LearnTask
from ostinato.streams import StreamOptions, TaskStream
from ostinato.training.loop import learn_task

METHODS = methods()
KINDS = {kind: type(make_backbone()) for kind, make_backbone in BACKBONES.items()}
CASES = [(name, kind) for kind in KINDS for name in METHODS if kind in kinds_of(METHODS[name])]
UNMET = [(name, kind) for kind in KINDS for name in METHODS if (name, kind) not in CASES]

SHORT = {name: {"align": {"epochs": 3}} for name in ("aligned", "hide_prompt", "layer_grouped", "lieprompt")}
"""Fewer passes of the alignments, which draw features of all classes and would take most of the time."""

OTHERS = {"mbpa": {"neighbours": 8}, "slca": {"align": {"epochs": 60}}}
"""Options where those of papers do not fit a toy stream: 32 neighbours are nearly all of its samples, and an alignment
of 5 epochs has 15 steps."""

LONGER = {"bic": 60}
"""Epochs, where the 12 of the others are too few beside distillation."""


OF_METHODS = {
    "same_seed_same_run",
    "a_run_stopped_anywhere_goes_on_to_the_same_result",
    "the_state_between_tasks_is_enough_to_go_on",
    "nothing_is_sized_by_what_is_to_come",
    "what_can_train_gets_a_gradient",
}
"""Checks that train again, in which no kind of encoder has a part: made on the first kind of each method.

``ostinato check`` and ``benchmarks/gpu.sh`` make them on all kinds.
"""

VARIANTS = [("joint", "image", "lora"), ("joint", "image", "full"), ("joint", "text", "lora")]
"""Scopes of joint training that hold other state than the default one: name, kind and scope."""


@pytest.fixture(scope="module", params=[*CASES, *VARIANTS], ids="-".join)
def case(request, device) -> Case:
    name, kind, *scope = request.param
    options = {"scope": scope[0]} if scope else SHORT.get(name, {})
    return Case(METHODS[name], kind, options, device=device, depth=6)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(case, check):
    if check.__name__ in OF_METHODS and case.kind != kinds_of(case.method)[0]:
        pytest.skip("made on another kind of encoder")
    try:
        check(case)
    except DoesNotApply as why:
        pytest.skip(str(why))


def test_a_task_of_one_class_is_told_from_those_before(case):
    """Its only class has nothing to be told apart from but the classes before."""
    name = case.method.name
    if case.kind != kinds_of(case.method)[0]:
        pytest.skip("the loss is the same for every kind of encoder")
    if name == "zero_shot":
        pytest.skip("it reads the names of classes, which say nothing to random weights")
    settings = replace(case.settings, overrides={"epochs": LONGER.get(name, 12), "batch_size": 8, "lr": 0.01})
    names = case.stream.class_names
    stream = TaskStream(case.stream.source, StreamOptions(tasks=[names[:2], names[2:3]], validation=0))
    options = OTHERS.get(name, {} if name in SHORT else case.options)
    method = (case if options == case.options else replace(case, options=options)).after(1)
    learn_task(method, learn_task_of(method, stream, 1), settings)
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(bool(p.isfinite().all()) for p in trained)
    if name != "joint":  # which needs more epochs for all classes at once
        seen = scores(method, case.inputs_upto(2))[len(stream.test(0)) :][: len(stream.test(1))]
        assert (seen.argmax(1) == 2).float().mean() > 0.5


def test_all_that_training_gets_is_the_current_task():
    assert set(LearnTask.__dataclass_fields__) == {
        "index",
        "classes",
        "train",
        "eval_batches",
        "processes",
        "class_names",
    }


@pytest.mark.parametrize(("name", "kind"), UNMET)
def test_a_method_says_what_backbone_it_needs(name, kind):
    needs = METHODS[name].needs.kind
    with pytest.raises(
        InputError, match=re.escape(f"method {name} needs {needs}, but the backbone is {KINDS[kind].kind}")
    ):
        make(name, kind)


@pytest.mark.parametrize("name", METHODS)
def test_no_part_of_a_transformer_in_our_methods(name):
    """Stricter than what is asked of others, who may need a softmax or a norm for something else."""
    source = inspect.getsource(inspect.getmodule(METHODS[name]))
    assert not re.search(r"softmax\([^)]*\) @|scaled_dot_product|MultiheadAttention|nn\.LayerNorm", source)


def test_no_method_names_in_the_engine():
    for package in (ostinato.training, ostinato.evaluation, ostinato.runs):
        for module in pkgutil.iter_modules(package.__path__):
            text = inspect.getsource(import_module(f"{package.__name__}.{module.name}"))
            for method in METHODS:
                assert not re.search(rf"\b{method}\b", text), f"{module.name} knows {method}"
