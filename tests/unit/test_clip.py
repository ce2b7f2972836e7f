"""Methods that read the names of classes, and edits over them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ostinato.contract.harness import SETTINGS, inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import random_backbone, random_clip_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.methods.clip_pgp import ClipPGP
from ostinato.methods.parts.class_texts import ClassTexts, names_of
from ostinato.methods.soft_tf import SoftTF
from ostinato.methods.zero_shot import ZeroShot
from ostinato.training.loop import learn_task


def task_of(*names: str, index: int = 0, first: int = 0) -> LearnTask:
    return LearnTask(index, range(first, first + len(names)), [], lambda: iter(()), class_names=names)


# Zero-shot


@torch.no_grad()
def test_zero_shot_is_the_scaled_cosine_with_each_name():
    backbone = random_clip_backbone()
    method = ZeroShot(backbone)
    method.begin_task(task := task_of("great_owl", "7"))
    method.end_task(task)
    x = inputs_of(tiny_stream("clip"))[:4]
    for i, text in enumerate(("a photo of a great owl.", "a photo of a 7.")):
        row = backbone.text(backbone.text.ids([text]))[0]
        want = backbone.scale * F.cosine_similarity(backbone.joint(backbone(x)), row[None])
        torch.testing.assert_close(method.scores(x)[:, i], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_templates_are_averaged():
    backbone = random_clip_backbone()
    method = ZeroShot(backbone, templates=("{}", "the {}"))
    method.begin_task(task := task_of("owl"))
    method.end_task(task)
    both = backbone.text(backbone.text.ids(["owl", "the owl"]))
    torch.testing.assert_close(method.texts[0], F.normalize(both.mean(0), dim=0))


def test_templates_need_a_place_for_the_class():
    with pytest.raises(InputError, match=r"sentences with \{\} for the class, got \['a photo'\]"):
        ZeroShot(random_clip_backbone(), templates=("a photo",))


def test_names_must_come_with_a_task():
    with pytest.raises(InputError, match=r"Task 1 must bring the names of its 2 classes.*it brings 0"):
        names_of(replace(task_of("a", "b", index=1), class_names=()))


# CLIP-PGP


@torch.no_grad()
def test_the_image_prompt_stands_behind_cls_before_the_first_norm():
    backbone = random_clip_backbone()
    method = ClipPGP(backbone, length=3)
    x = inputs_of(tiny_stream("clip"))[:4]
    got = method.prompts.enter(x, method.query)[0].h
    prompt = (method.prompts.prompt + backbone.pos_embed[0, 0]).expand(4, -1, -1)
    plain = backbone.placed(x).h
    want = backbone.norm_pre(torch.cat([plain[:, :1], prompt, plain[:, 1:]], 1))
    torch.testing.assert_close(got, want)


def test_texts_of_a_task_are_fixed_after_it():
    stream = tiny_stream("clip")
    method = learn(make("clip_pgp", "clip"), stream, upto=1)
    before, context = method.texts.closed.clone(), method.texts.contexts[0].clone()
    assert before.shape == (2, 8)
    learn_task(method, learn_task_of(method, stream, 1), SETTINGS)
    assert torch.equal(method.texts.closed[:2], before)
    assert torch.equal(method.texts.contexts[0], context)
    assert not torch.equal(method.texts.contexts[1], context)
    ids = method.backbone.text.ids(["0.", "1."])
    torch.testing.assert_close(method.backbone.text(ids, context), before)


def test_training_uses_the_classes_of_the_task_alone():
    method = make("clip_pgp", "clip")
    method.begin_task(task_of("0", "1"))
    method.texts.close()
    method.begin_task(task_of("2", "3", index=1, first=2))
    x, y = inputs_of(tiny_stream("clip"))[:4], torch.tensor([2, 3, 3, 2])
    logits = method.scores(x)
    assert logits.shape == (4, 4)
    torch.testing.assert_close(method.loss(x, y)["ce"], F.cross_entropy(logits[:, 2:], y - 2))


@torch.no_grad()
def test_projected_updates_leave_old_tokens_alone():
    """With all of the energy kept there is nothing to move along; with some, what is moved does not meet it."""
    stream = tiny_stream("clip")
    settings = replace(SETTINGS, overrides={"epochs": 2, "batch_size": 8, "lr": 0.5})
    for pgp, moves in ((0.9, True), (1.0, False), (0.0, True)):
        with torch.enable_grad():
            method = learn(make("clip_pgp", "clip", pgp=pgp), stream, upto=1, settings=settings)
            before = method.prompts.prompt.detach().clone()
            learn_task(method, learn_task_of(method, stream, 1), settings)
        update = method.prompts.prompt - before
        assert (update.abs().max() > 1e-4) == moves, pgp
        if pgp == 0.9:
            x = inputs_of(stream, 1)
            tokens = (
                method.backbone.placed(x).insert(method.backbone.placed_prompts(before)[None], at=1).h.flatten(0, 1)
            )
            share = (tokens @ update.mT).norm() / (tokens.norm() * update.norm())
            assert share < 0.35  # a tenth of the energy may remain: 0.1 ** 0.5


# Edits of the image encoder over CLIP-PGP


@torch.no_grad()
@pytest.mark.parametrize("name", ["soft_tf", "lora", "adapter"])
def test_training_begins_at_clip_pgp(name):
    method = make(name, "clip", base="clip_pgp")
    method.begin_task(task_of("0", "1"))
    x = inputs_of(tiny_stream("clip"))[:4]
    plain = make("clip_pgp", "clip")
    plain.prompts, plain.texts = method.prompts, method.head
    assert isinstance(plain, ClipPGP)
    want = plain.scores(x)
    torch.testing.assert_close(method.scores_given_task(x, torch.zeros(4, dtype=torch.int64)), want)


@pytest.mark.parametrize("task_id", ["prompt_id", "gradient_id", "min_entropy", "max_score"])
def test_tasks_are_inferred_per_image(task_id):
    stream = tiny_stream("clip")
    method = learn(make("soft_tf", "clip", base={"name": "clip_pgp", "pgp": 0.9}, task_id=task_id), stream)
    x = inputs_of(stream)
    together = scores(method, x)
    assert together.shape == (len(x), 5)
    torch.testing.assert_close(torch.cat([scores(method, row[None]) for row in x]), together, atol=1e-4, rtol=1e-4)
    masks = [method.bank.masks[str(i)]["q"] for i in method.layers]
    assert all(not torch.equal(bank[0], bank[1]) for bank in masks)
    assert isinstance(method.head, ClassTexts), "texts are the head"


def test_all_tasks_side_by_side_are_each_task_alone():
    stream = tiny_stream("clip")
    method = learn(make("soft_tf", "clip", base="clip_pgp"), stream)
    x = inputs_of(stream)
    with torch.inference_mode():
        every = method.scores_all_tasks(x)
        for t in range(3):
            alone = method.scores_given_task(x, torch.full((len(x),), t))
            torch.testing.assert_close(every[t], alone, atol=1e-4, rtol=1e-4)


def test_clip_pgp_below_needs_clip():
    with pytest.raises(
        InputError, match=r"method.base=clip_pgp needs an image-text model \(CLIP\), but the backbone is"
    ):
        SoftTF(random_backbone(), base="clip_pgp")
