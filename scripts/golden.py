"""Record the results of every method bit by bit, and compare them with those of another revision.

    make golden SINCE=REVISION

records with the package and the script of a revision (default HEAD, to compare uncommitted changes with the last
commit) and checks the working tree against it. By hand, for example if the revision does not have this script:

    git worktree add --detach ../before REVISION
    PYTHONPATH=../before/src python scripts/golden.py record before.json
    python scripts/golden.py check before.json

Every row of ``ROWS`` is a method with options, which learns all tasks of a small stream. The record has the losses of
every step, the accuracy after every task, and predictions, scores and task evidence of 50 test samples. ``check`` lists
each row as equal or with its first difference in the order of computation, and exits with 1 if any row differs. A row
is found by its name: if a change renames options, change them in ``ROWS`` and keep the name.

Bits depend on the processor and the version of torch, so record and check on the same machine. A file from another kind
of machine is refused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import ostinato
from ostinato.training.callbacks import Callback

SAMPLES = 50
"""Number of test samples with recorded scores, evenly spaced over all tasks."""


@dataclass(frozen=True)
class Row:
    """A recorded experiment.

    Attributes:
        name: key in the record.
        method: registered name of the method.
        options: options of the method.
        on: "digits" is scikit-learn's on the bundled encoder, one epoch and five tasks of two classes; "image", "text"
            and "clip" are tiny encoders and streams of the contract, two epochs and tasks of two, two and one class.
        train: fields of the recipe except the epochs, on digits.
        learner: further arguments of the learner, on digits.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    on: Literal["digits", "image", "text", "clip"] = "digits"
    train: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


FEW = {"batch_size": 16}
"""Several steps per task for methods whose recipe has large batches."""

ALIGN = {"align": {"epochs": 3, "samples": 24}}
"""A short alignment."""

KEPT = {"memory": {"size": 20}}
"""A small memory."""

TERM = {"frozen_term": {"name": "discriminant", "weight": 0.1}}
"""Log-likelihoods of the plain encoder beside the scores."""

SHORT = {"steps": 3, "neighbours": 4}
"""A short local adaptation."""

ROWS = (
    # Baselines
    Row("simplecil", "simplecil"),
    Row("simplecil on texts", "simplecil", on="text"),
    Row("simplecil on CLIP", "simplecil", on="clip"),
    Row("zero_shot on CLIP", "zero_shot", on="clip"),
    Row("zero_shot, two templates", "zero_shot", {"templates": ("a photo of a {}.", "a {}")}, on="clip"),
    Row("slda", "slda"),
    Row("slda on texts", "slda", on="text"),
    Row("ranpac", "ranpac"),
    Row("ranpac, penalty", "ranpac", {"n_random": 50, "penalty": 100.0}, on="image"),
    Row("ranpac on texts", "ranpac", on="text"),
    Row("fecam", "fecam"),
    Row("fecam, Tukey", "fecam", {"gamma1": 0.7, "gamma2": 0.2, "tukey": 0.5}, on="image"),
    Row("fecam on texts", "fecam", on="text"),
    # Closed form beside an adaptation to the first task
    Row("duet", "duet", {"n_random": 500}, train=FEW),
    Row("duet, ridge", "duet", {"n_gaussian": 0}, on="image"),
    Row("duet, plain", "duet", {"encoders": "plain"}, on="image"),
    Row("duet, adapted", "duet", {"encoders": "adapted", "n_random": 50}, on="image"),
    Row("duet, layers", "duet", {"layers": (5, 2), "rank": 4, "keep": 1.0, "n_random": 50}, on="image"),
    Row("duet on texts", "duet", on="text"),
    # Bounds
    Row("finetune", "finetune"),
    Row("finetune, head", "finetune", {"scope": "head"}),
    Row("finetune on texts", "finetune", on="text"),
    Row("joint", "joint", {"scope": "full"}),
    Row("joint, head", "joint", {"scope": "head"}, on="image"),
    Row("joint, head, cosine", "joint", {"scope": "head", "classifier": "cosine"}, on="image"),
    Row("joint, head, restart", "joint", {"scope": "head", "restart": True}, on="image"),
    Row("joint, restart", "joint", {"scope": "full", "restart": True}, on="image"),
    Row("joint, lora", "joint", {"scope": "lora"}),
    Row("joint, lora, restart", "joint", {"scope": "lora", "rank": 2, "scale": 1.0, "restart": True}, on="image"),
    Row("joint on texts", "joint", {"scope": "full"}, on="text"),
    Row("joint on texts, lora", "joint", {"scope": "lora"}, on="text"),
    # Prompts among the tokens
    Row("l2p", "l2p"),
    Row("l2p, CLS", "l2p", {"readout": "cls", "pool_size": 6, "top_k": 2, "pull": 0.5}),
    Row("l2p, PGP", "l2p", {"pgp": 0.9}),
    Row("l2p, PGP, CLS", "l2p", {"pgp": 0.5, "pgp_keys": 0.8, "readout": "cls"}, on="image"),
    Row("l2p on texts", "l2p", on="text"),
    Row("l2p on texts, PGP", "l2p", {"pgp": 0.5}, on="text"),
    Row("clip_pgp", "clip_pgp", on="clip"),
    Row("clip_pgp, no projection", "clip_pgp", {"pgp": 0.0, "length": 3, "context": 4}, on="clip"),
    # Prefixes
    Row("dualprompt", "dualprompt"),
    Row("dualprompt, mean keys", "dualprompt", {"keys": "mean"}),
    Row("dualprompt, class keys", "dualprompt", {"keys": "classes"}),
    Row("dualprompt, clusters", "dualprompt", {"keys": {"name": "clusters", "clusters": 3}}, on="image"),
    Row("dualprompt, Gaussians", "dualprompt", {"keys": "gaussians"}),
    Row("dualprompt, PGP", "dualprompt", {"pgp": 0.9}),
    Row("dualprompt, PGP, mean keys", "dualprompt", {"pgp": 0.5, "keys": "mean"}, on="image"),
    Row("dualprompt, new experts", "dualprompt", {"warm_start": False, "g_layers": (), "keys": {"pull": 0.5}}),
    Row("dualprompt, layers", "dualprompt", {"g_layers": (7,), "e_layers": (1, 9), "g_length": 2, "e_length": 3},
        on="image"),
    Row("dualprompt, micro-batches", "dualprompt", learner={"accumulate": 2}),
    Row("dualprompt on texts", "dualprompt", on="text"),
    Row("dualprompt on texts, PGP", "dualprompt", {"pgp": 0.5}, on="text"),
    Row("dualprompt on CLIP", "dualprompt", {"keys": "classes"}, on="clip"),
    Row("s_prompt", "s_prompt", train=FEW),
    Row("s_prompt, few centres", "s_prompt", {"length": 3, "clusters": 2}, on="image"),
    Row("s_prompt on texts", "s_prompt", on="text"),
    Row("hide_prompt", "hide_prompt", ALIGN),
    Row("hide_prompt, mixed", "hide_prompt", ALIGN | {"momentum": 0.3, "contrast": 0.0, "layers": (2, 7)}, on="image"),
    Row("hide_prompt on texts", "hide_prompt", ALIGN, on="text"),
    Row("coda_prompt", "coda_prompt", train=FEW),
    Row("coda_prompt, its head as in its code", "coda_prompt", {"head_init": "linear"}, train=FEW),
    Row("coda_prompt, penalty", "coda_prompt", {"ortho": 0.1, "components": 3, "length": 4, "layers": (2, 5)},
        on="image"),
    Row("coda_prompt on texts", "coda_prompt", on="text"),
    # Prompts of all layers, with alignment, and the alignment alone
    Row("aligned", "aligned", ALIGN),
    Row("aligned, not aligned", "aligned", {"align": "none"}, on="image"),
    Row("aligned on texts", "aligned", ALIGN, on="text"),
    Row("layer_grouped", "layer_grouped", ALIGN, train=FEW),
    Row("layer_grouped, query", "layer_grouped", ALIGN | {"fusion": "soft_query"}, train=FEW),
    Row("layer_grouped, query, warm", "layer_grouped", ALIGN | {"fusion": "soft_query", "temperature": 1.0},
        on="image"),
    Row("layer_grouped, uniform", "layer_grouped", ALIGN | {"fusion": "uniform"}, train=FEW),
    Row("layer_grouped, sum", "layer_grouped", ALIGN | {"fusion": "sum"}, train=FEW),
    Row("layer_grouped, sum, no root", "layer_grouped", ALIGN | {"fusion": "sum", "root": False}, on="image"),
    Row("layer_grouped, no root", "layer_grouped", ALIGN | {"root": False, "groups": 12}, on="image"),
    Row("layer_grouped, no position", "layer_grouped", ALIGN | {"position": False, "groups": 1}, on="image"),
    Row("layer_grouped, equal in training", "layer_grouped", ALIGN | {"fusion_in_training": False}, on="image"),
    Row("layer_grouped, cold", "layer_grouped", ALIGN | {"warm_start": False, "root_std": 0.1}, on="image"),
    Row("layer_grouped, not aligned", "layer_grouped", {"align": "none"}, train=FEW),
    Row("layer_grouped, shared", "layer_grouped", {"align": ALIGN["align"] | {"covariance": "shared", "lr": 0.01}},
        on="image"),
    Row("layer_grouped, diagonal", "layer_grouped", {"align": ALIGN["align"] | {"covariance": "diagonal"}}, on="image"),
    Row("layer_grouped, layers", "layer_grouped", ALIGN | {"layers": (8, 3, 5), "length": 4, "bottleneck": 3},
        on="image"),
    Row("layer_grouped, no prompts", "layer_grouped", ALIGN | {"length": 0}, on="image"),
    Row("layer_grouped, state cache", "layer_grouped", ALIGN | {"layers": (6, 8, 10)}, train=FEW,
        learner={"state_cache": 0.1}),
    Row("layer_grouped, discriminant", "layer_grouped", {"align": "discriminant", "fusion": "soft_query"}, on="image"),
    Row("layer_grouped, frozen term", "layer_grouped", ALIGN | TERM, on="image"),
    Row("layer_grouped on texts", "layer_grouped", ALIGN, on="text"),
    Row("lieprompt", "lieprompt", ALIGN),
    Row("lieprompt, selected", "lieprompt", ALIGN | {"top_k": 2, "key_pull": 0.5}),
    Row("lieprompt, selected, restricted", "lieprompt", ALIGN | {"top_k": 3, "restrict": True}, on="image"),
    Row("lieprompt, soft", "lieprompt", {"align": ALIGN["align"] | {"covariance": "shared"}, "test_gate": "soft"},
        on="image"),
    Row("lieprompt, soft, masked", "lieprompt",
        
        {"align": ALIGN["align"] | {"covariance": "diagonal"}, "test_gate": "soft_masked"}, on="image"),
    Row("lieprompt, absent", "lieprompt", ALIGN | {"off": "absent"}),
    Row("lieprompt, absent, soft", "lieprompt", ALIGN | {"test_gate": "soft"}, on="image"),
    Row("lieprompt, absent, masked", "lieprompt", ALIGN | {"off": "absent", "test_gate": "soft_masked"}, on="image"),
    Row("lieprompt, CLS", "lieprompt", ALIGN | {"query": "cls", "restrict": True}, on="image"),
    Row("lieprompt, frozen", "lieprompt", ALIGN | {"query": "frozen", "layer_topk": 2, "add_num": 3}, on="image"),
    Row("lieprompt, no growth", "lieprompt", {"align": ALIGN["align"] | {"lr": 0.01}, "layer_topk": 0, "balance": 0.0},
        on="image"),
    Row("lieprompt, prototypes", "lieprompt", ALIGN | {"readout": "proto", "ortho": 0.0}, on="image"),
    Row("lieprompt, discriminant, frozen term", "lieprompt", {"align": "discriminant"} | TERM, on="image"),
    Row("lieprompt on texts", "lieprompt", ALIGN, on="text"),
    Row("lieprompt on texts, absent", "lieprompt", ALIGN | {"off": "absent", "top_k": 2}, on="text"),
    # Masks per task
    Row("soft_tf", "soft_tf"),
    Row("soft_tf, attention", "soft_tf", {"variant": "attn"}, on="image"),
    Row("soft_tf, MLP", "soft_tf", {"variant": "ff"}),
    Row("soft_tf, none", "soft_tf", {"base": "none"}),
    Row("soft_tf, none, state cache", "soft_tf", {"base": "none"}, learner={"state_cache": 0.1}),
    Row("soft_tf, none, MLP, entropy", "soft_tf", {"base": "none", "variant": "ff", "task_id": "min_entropy"},
        on="image"),
    Row("soft_tf, l2p", "soft_tf", {"base": "l2p"}),
    Row("soft_tf, l2p, CLS, gradient", "soft_tf",
        {"base": {"name": "l2p", "readout": "cls"}, "task_id": "gradient_id"}),
    Row("soft_tf, l2p, PGP", "soft_tf",
        {"base": {"name": "l2p", "pgp": 0.9, "pool_size": 6, "top_k": 2}, "keys": "learned"}),
    Row("soft_tf, PGP", "soft_tf", {"base": {"pgp": 0.9}}),
    Row("soft_tf, PGP, learned keys", "soft_tf", {"base": {"pgp": 0.5}, "keys": {"name": "learned", "pull": 0.5}},
        on="image"),
    Row("soft_tf, learned keys", "soft_tf", {"keys": "learned"}),
    Row("soft_tf, class keys", "soft_tf", {"keys": "classes"}),
    Row("soft_tf, clusters", "soft_tf", {"keys": "clusters"}, on="image"),
    Row("soft_tf, Gaussians", "soft_tf", {"keys": "gaussians", "base": "none"}),
    Row("soft_tf, gradient", "soft_tf", {"task_id": "gradient_id"}),
    Row("soft_tf, gradient, top", "soft_tf", {"task_id": "gradient_id", "entropy_over": "top"}, on="image"),
    Row("soft_tf, entropy, benchmark", "soft_tf",
        {"task_id": "min_entropy", "entropy_over": "benchmark", "benchmark_classes": 10}, on="image"),
    Row("soft_tf, entropy, top", "soft_tf", {"task_id": "min_entropy", "entropy_over": "top"}, on="image"),
    Row("soft_tf, score", "soft_tf", {"task_id": "max_score"}, on="image"),
    Row("soft_tf, layers", "soft_tf", {"layers": (5, 8), "base": {"e_layers": (3, 8), "g_layers": (1,)}}, on="image"),
    Row("soft_tf, experts alone", "soft_tf", {"base": {"g_layers": (), "warm_start": False}}, on="image"),
    Row("soft_tf, uniform masks", "soft_tf", {"mask_init": "uniform"}, on="image"),
    Row("soft_tf, Xavier masks", "soft_tf", {"mask_init": "xavier"}, on="image"),
    Row("soft_tf, Kaiming masks", "soft_tf", {"mask_init": "kaiming"}, on="image"),
    Row("soft_tf, normal masks", "soft_tf", {"mask_init": "normal"}, on="image"),
    Row("soft_tf, frozen term", "soft_tf", TERM, on="image"),
    Row("soft_tf on texts", "soft_tf", on="text"),
    Row("soft_tf on texts, l2p", "soft_tf", {"base": {"name": "l2p", "readout": "cls"}}, on="text"),
    Row("soft_tf on CLIP", "soft_tf", {"base": "clip_pgp"}, on="clip"),
    Row("soft_tf on CLIP, PGP", "soft_tf", {"base": {"name": "clip_pgp", "pgp": 0.9, "length": 3, "context": 4}},
        on="clip"),
    Row("soft_tf on CLIP, dualprompt", "soft_tf", {"base": {"pgp": 0.5}}, on="clip"),
    Row("wsn", "wsn"),
    Row("wsn, hybrid", "wsn", {"kind": "hybrid", "variant": "attn", "task_id": "gradient_id"}),
    Row("wsn, soft", "wsn", {"kind": "soft", "variant": "ff", "keep": 0.5}),
    Row("wsn, none", "wsn", {"base": "none"}),
    Row("wsn, l2p, hybrid", "wsn", {"base": "l2p", "kind": "hybrid"}, on="image"),
    Row("wsn, PGP", "wsn", {"base": {"pgp": 0.9}}, on="image"),
    Row("wsn on texts", "wsn", {"kind": "soft"}, on="text"),
    Row("wsn on CLIP", "wsn", {"base": "clip_pgp"}, on="clip"),
    # Updates per task
    Row("lora", "lora"),
    Row("lora, none", "lora", {"base": "none", "rank": 2, "scale": 2.0, "task_id": "min_entropy"}),
    Row("lora, l2p", "lora", {"base": "l2p"}),
    Row("lora, l2p, PGP", "lora", {"base": {"name": "l2p", "pgp": 0.9, "readout": "cls"}}, on="image"),
    Row("lora, PGP", "lora", {"base": {"pgp": 0.9}, "keys": "learned"}),
    Row("lora on texts", "lora", on="text"),
    Row("lora on CLIP", "lora", {"base": {"name": "clip_pgp", "pgp": 0.9}}, on="clip"),
    Row("adapter", "adapter"),
    Row("adapter, none", "adapter", {"base": "none", "rank": 2, "task_id": "max_score"}),
    Row("adapter, l2p", "adapter", {"base": "l2p"}),
    Row("adapter, l2p, PGP", "adapter", {"base": {"name": "l2p", "pgp": 0.5}, "keys": "learned"}, on="image"),
    Row("adapter, PGP", "adapter", {"base": {"pgp": 0.9}}),
    Row("adapter on texts", "adapter", on="text"),
    Row("adapter on CLIP", "adapter", {"base": "clip_pgp"}, on="clip"),
    Row("cl_lora", "cl_lora", train=FEW),
    Row("cl_lora, micro-batches", "cl_lora", train=FEW, learner={"accumulate": 2}),
    Row("cl_lora, no distillation", "cl_lora", {"kd": 0.0}, on="image"),
    Row("cl_lora, not reassigned", "cl_lora", {"reassign": False, "teacher_detached": True, "tau": 1.0}, on="image"),
    Row("cl_lora, no block weights", "cl_lora", {"block_weights": False, "down_init": "normal", "rank": 3}, on="image"),
    Row("cl_lora, layers", "cl_lora", {"shared_layers": (2, 4), "specific_layers": (7, 9), "ortho": 0.0}, train=FEW,
        learner={"state_cache": 0.1}),
    Row("cl_lora, frozen term", "cl_lora", {"frozen_term": "discriminant"}, on="image"),
    Row("cl_lora on texts", "cl_lora", on="text"),
    Row("aper", "aper", train=FEW),
    Row("aper, prompts", "aper", {"adapt": {"name": "vpt", "length": 3}}, on="image"),
    Row("aper, scales", "aper", {"adapt": "ssf"}, on="image"),
    Row("aper on texts", "aper", {"adapt": {"rank": 4}}, on="text"),
    Row("ease", "ease", train=FEW),
    Row("ease, plain encoder", "ease", {"alpha": 0.5, "beta": 1.0, "rank": 4, "dropout": 0.0}, on="image"),
    Row("ease on texts", "ease", {"rank": 4}, on="text"),
    Row("inflora", "inflora", train=FEW),
    Row("inflora, little energy", "inflora", {"rank": 3, "energy": 0.5, "energy_step": 0.2}, on="image"),
    Row("inflora on texts", "inflora", on="text"),
    Row("sd_lora", "sd_lora", train=FEW),
    Row("sd_lora, large", "sd_lora", {"rank": 2, "magnitude": 2.0}, on="image"),
    Row("sd_lora on texts", "sd_lora", on="text"),
    Row("slm", "slm"),
    Row("slm, one key", "slm", {"layers": (9, 11), "keys": 2, "rank": 2, "top_k": 1, "scale": 2.0}, on="image"),
    Row("slm, all keys", "slm", {"keys": 2, "top_k": 8, "temperature": 1.0}, on="image"),
    Row("slm on texts", "slm", on="text"),
    # Regularisation of a trained encoder
    Row("ewc", "ewc", {"fisher_samples": 20}, train=FEW),
    Row("ewc, online", "ewc", {"online": True, "gamma": 0.5, "weight": 10.0}, on="image"),
    Row("ewc on texts", "ewc", {"fisher_samples": 8}, on="text"),
    Row("lwf", "lwf", train=FEW),
    Row("lwf, weak", "lwf", {"weight": 0.5, "temperature": 1.0}, on="image"),
    Row("lwf on texts", "lwf", on="text"),
    Row("slca", "slca", ALIGN, train=FEW),
    Row("slca, shared", "slca", {"align": ALIGN["align"] | {"covariance": "shared"}}, on="image"),
    Row("slca on texts", "slca", ALIGN, on="text"),
    # Replay
    Row("er", "er", KEPT, train=FEW),
    Row("er, herding", "er", {"memory": {"name": "herding", "size": 3, "per": "class"}}, on="image"),
    Row("er on texts", "er", {"memory": {"name": "random", "size": 20}}, on="text"),
    Row("der", "der", KEPT, train=FEW),
    Row("der, ++", "der", {"memory": {"name": "herding", "size": 20}, "alpha": 0.1, "beta": 0.5}, on="image"),
    Row("der on texts", "der", {"memory": {"name": "random", "size": 10}}, on="text"),
    Row("icarl", "icarl", KEPT, train=FEW),
    Row("icarl, random", "icarl", {"memory": {"name": "random", "size": 2, "per": "class"}}, on="image"),
    Row("icarl on texts", "icarl", KEPT, on="text"),
    Row("bic", "bic", KEPT, train=FEW),
    Row("bic, random", "bic", {"memory": {"name": "random", "size": 4, "per": "class"}, "held_out": 0.5}, on="image"),
    Row("bic on texts", "bic", KEPT, on="text"),
    Row("gdumb", "gdumb", KEPT),
    Row("gdumb, per class", "gdumb", {"memory": {"size": 3, "per": "class"}}, on="image"),
    Row("gdumb on texts", "gdumb", KEPT, on="text"),
    Row("idbr", "idbr", on="text"),
    Row("idbr, often", "idbr", {"replay_every": 1, "memory": 0.5, "width": 12}, on="text"),
    Row("idbr, weights", "idbr",
        {"replay_every": 2, "memory": 1.0, "order": 0.5, "task": 2.0, "hold_g": 5.0, "hold_s": 0.0}, on="text"),
    Row("mbpa", "mbpa"),
    Row("mbpa, replay", "mbpa", {"replay_rate": 0.5, "memory": 0.3, "adapt_lr": 0.2, "adapt_l2": 0.1}, on="image"),
    Row("mbpa, no adaptation", "mbpa", {"adapt": "none", "replay_rate": 0.0}, on="image"),
    Row("mbpa, all", "mbpa", SHORT | {"adapt": "all", "replay_rate": 1.0}, on="image"),
    Row("mbpa on texts", "mbpa", SHORT, on="text"),
    Row("mbpa on texts, all", "mbpa", SHORT | {"adapt": "all", "replay_rate": 0.5}, on="text"),
)  # fmt: skip
"""Recorded experiments: every method, with options that cover its branches."""


# Use of the package; the sections below do not depend on it.


@dataclass(frozen=True)
class Lesson:
    """An untrained method and its tasks.

    Attributes:
        method: method on the CPU, in fp32.
        stream: tasks to learn.
        transform: transform of test samples.
        learn: learns a task, with a callback.
        evaluate: evaluates on the test samples of tasks.
    """

    method: Any
    stream: Any
    transform: Any
    learn: Callable[[int, Losses], Any]
    evaluate: Callable[[Sequence[Any]], Any]


class Losses(Callback):
    """Callback that records the losses of every step."""

    def __init__(self) -> None:
        self.losses: dict[str, dict[str, float]] = {}
        self.stage = ""

    def on_stage_start(self, task: int, stage: Any, step: int, steps: int) -> None:  # noqa: ARG002 - as it is called
        """Start a stage."""
        self.stage = f"task {task + 1}, {stage.name}"

    def on_step(self, position: Any, losses: dict[str, float], optimizer: Any, n: int) -> None:  # noqa: ARG002
        """Record the losses of a step."""
        key = f"{self.stage}, step {position.step}"
        if key in self.losses:
            raise RuntimeError(f"Names of steps must be unique, {key!r} is used twice. Rename a stage of the task.")
        self.losses[key] = dict(losses)


def begin(row: Row) -> Lesson:
    """Make the untrained method of a row."""
    return _on_digits(row) if row.on == "digits" else _on_tiny_models(row)


def _on_digits(row: Row) -> Lesson:
    from ostinato.learner import Learner
    from ostinato.streams import StreamOptions, TaskStream, open_source

    options = StreamOptions(step=2, validation=0, limit_per_class=40, test_limit_per_class=20)
    stream = TaskStream(open_source("digits"), options)
    train = {"epochs": 1} | row.train
    learner = Learner(row.method, device="cpu", precision="fp32", seed=0, train=train, **row.learner, **row.options)

    def learn(i: int, callback: Losses) -> None:
        learner.learn(stream.task(i), callback=callback)

    return Lesson(learner.method, stream, learner.eval_transform, learn, partial(learner.evaluate, oracle=True))


def _on_tiny_models(row: Row) -> Lesson:
    from ostinato.contract.harness import SETTINGS, learn_task_of, make
    from ostinato.contract.tiny_models import tiny_stream, transform_of
    from ostinato.evaluation.evaluator import evaluate
    from ostinato.training.loop import learn_task

    if row.train or row.learner:
        raise ValueError(f"{row.name}: the recipe and the learner of tiny models are fixed.")
    method, stream = make(row.method, row.on, **row.options), tiny_stream(row.on)  # pyright: ignore[reportArgumentType]

    def learn(i: int, callback: Losses) -> None:
        learn_task(method, learn_task_of(method, stream, i), SETTINGS, callback)

    def count(groups: Sequence[Any]) -> Any:
        return evaluate(method, groups, SETTINGS, oracle=True)

    return Lesson(method, stream, transform_of(stream), learn, count)


COUNTS = ("totals", "correct", "task_incremental", "task_id", "oracle_id")
"""Recorded fields of an evaluation, counts per task."""


@torch.inference_mode()
def outputs(method: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Outputs of a trained method for test samples x with labels y."""
    from ostinato.methods.base import TaskInferring

    method.eval()
    scores = method.scores(x)
    found: dict[str, Any] = {"predictions": per_sample(scores.argmax(1)), "scores": per_sample(scores)}
    if isinstance(method, TaskInferring):
        evidence = {rule: per_sample(weigh(x)) for rule, weigh in method.rules().items()}
        given = method.scores_given_task(x, method.task_of_class[y])
        found |= {"evidence for each task": evidence, "scores under the true task": per_sample(given)}
    return found


def package() -> str:
    """Folder of the imported package."""
    return str(Path(ostinato.__file__).parent)


# Running


def per_sample(values: torch.Tensor) -> dict[str, Any]:
    """Convert values to Python numbers by sample, which is exact for fp32."""
    return {f"sample {i + 1}": value for i, value in enumerate(values.tolist())}


def results(row: Row) -> dict[str, Any]:
    """Run a row and collect its results in the order of computation."""
    lesson, callback, accuracy = begin(row), Losses(), {}
    groups: list[Any] = []
    for i in range(len(lesson.stream)):
        lesson.learn(i, callback)
        groups.append(lesson.stream.test(i).with_transform(lesson.transform))
        counts = lesson.evaluate(groups)
        accuracy[f"after task {i + 1}"] = {name: getattr(counts, name) for name in COUNTS}
    places = [(group, i) for group in groups for i in range(len(group))]
    chosen = [places[i * len(places) // min(SAMPLES, len(places))] for i in range(min(SAMPLES, len(places)))]
    x, y = groups[0].collate([group[i] for group, i in chosen])
    return {"losses": callback.losses, "accuracy": accuracy} | outputs(lesson.method, x, y)


def run(row: Row) -> tuple[dict[str, Any] | str, float]:
    """Return the results of a row or its error, and the seconds."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        found = results(row)
    except Exception:
        return traceback.format_exc(), time.perf_counter() - began
    return found, time.perf_counter() - began


def run_all(rows: Sequence[Row], jobs: int) -> Iterator[tuple[Row, dict[str, Any] | str, float]]:
    """Yield every row with its results of :func:`run`, in order."""
    if jobs == 1:
        yield from ((row, *run(row)) for row in rows)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, (found, seconds) in zip(rows, pool.map(run, rows), strict=True):
            yield row, found, seconds


def machine() -> dict[str, str]:
    """Known properties of the machine that affect the last bits."""
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


# Comparing

NOTHING = "nothing"


def differences(before: Any, now: Any, *path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield places where two results differ in any bit, with both values, in the order of the first."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from differences(before.get(key, NOTHING), now.get(key, NOTHING), *path, key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, *path, f"[{i}]")
    elif _exact(before) != _exact(now):
        yield ", ".join(path), before, now


def _exact(value: Any) -> Any:
    """Make a key that is equal for equal bits only: -0.0 is not 0.0, and NaN equals NaN."""
    return value.hex() if isinstance(value, float) else (type(value), value)


def values_in(results: Any) -> int:
    """Count the values in results."""
    if isinstance(results, dict | list):
        return sum(values_in(part) for part in (results.values() if isinstance(results, dict) else results))
    return 1


def verdict(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Describe the difference of results; None if they are equal."""
    found = list(differences(before, now))
    if not found:
        return None
    gaps = [abs(a - b) for _, a, b in found if isinstance(a, float) and isinstance(b, float)]
    largest = f", the largest gap between numbers is {max(gaps):.3g}" if gaps else ""
    place, old, new = found[0]
    return f"{len(found)} of {values_in(before)} values differ{largest}; first {place}: was {old!r}, is {new!r}"


def record(path: Path, rows: Sequence[Row], jobs: int) -> int:
    """Write the results of rows, or nothing if one fails; return the exit status, 1 for a failure."""
    recorded, failed = {}, []
    for row, found, seconds in run_all(rows, jobs):
        print(f"{row.name}: {seconds:.1f} s", flush=True)
        if isinstance(found, str):
            print(found, file=sys.stderr)
            failed.append(row.name)
        else:
            recorded[row.name] = {"method": row.method, "options": row.options, "results": found}
    if failed:
        print(f"Nothing is recorded: {', '.join(failed)} ended with an error.", file=sys.stderr)
        return 1
    path.write_text(json.dumps({"machine": machine(), "rows": recorded}))
    print(f"{len(recorded)} rows are recorded in {path}")
    return 0


def check(path: Path, rows: Sequence[Row], jobs: int, only: str) -> int:
    """Compare rows with the record.

    Returns:
        Exit status: 1 if a row differs or is on one side only; 2 if the file is of another kind of machine.
    """
    content = json.loads(path.read_text())
    if content["machine"] != machine():
        print(f"{path} is of {content['machine']}, but this is {machine()}: bits may differ.", file=sys.stderr)
        return 2
    recorded = {name: kept for name, kept in content["rows"].items() if re.search(only, name)}
    known = [row for row in rows if row.name in recorded]
    unequal = 0
    for row, found, seconds in run_all(known, jobs):
        # Convert through JSON, which turns tuples into lists.
        said = (
            found if isinstance(found, str) else verdict(recorded[row.name]["results"], json.loads(json.dumps(found)))
        )
        unequal += said is not None
        print(f"{row.name}: {said or 'equal'} ({seconds:.1f} s)", flush=True)
    for row in rows:
        if row.name not in recorded:
            unequal += 1
            print(f"{row.name}: not recorded")
    for name in recorded:
        if name not in {row.name for row in rows}:
            unequal += 1
            print(f"{name}: recorded, but no row is called so now")
    print(f"{unequal} rows differ, {len(known)} were compared")
    return 1 if unequal else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or check; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mode", choices=["record", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name has a match")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    asked = parser.parse_args(arguments)
    rows = [row for row in ROWS if re.search(asked.only, row.name)]
    if not rows:
        parser.error(f"--only: no row has a match of {asked.only!r}.")
    print(f"{len(rows)} rows with the package in {package()}", flush=True)
    if asked.mode == "record":
        return record(asked.file, rows, asked.jobs)
    return check(asked.file, rows, asked.jobs, asked.only)


if __name__ == "__main__":
    sys.exit(main())
