"""Public PyTorch code of L2P and DualPrompt (JH-LEE-KR), prompts selected per image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.twins.ground import DEPTH, DIM, HEADS, Ground, Scores, fill
from benchmarks.twins.patches import Passes, exchange_axes, freeze, prepare


def settings(ground: Ground, **more: Any) -> SimpleNamespace:
    """Arguments of ``train_one_epoch``."""
    return SimpleNamespace(
        distributed=False, epochs=ground.sizes.passes, print_freq=10**9, train_mask=True,
        nb_classes=ground.step * ground.n, pull_constraint=True, **more,
    )  # fmt: skip


def class_masks(ground: Ground) -> list[list[int]]:
    """Classes of each task."""
    return [list(range(ground.step * t, ground.step * (t + 1))) for t in range(ground.n)]


def new_head(head: nn.Linear) -> None:
    """Draw a head as timm and ours do."""
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight, std=0.02)
        head.bias.zero_()


def copy_expert(net: Any, task: int) -> None:
    """Start a task's expert prefixes at those of the task before."""
    with torch.no_grad():
        net.e_prompt.prompt.grad.zero_()
        net.e_prompt.prompt[:, :, task : task + 1] = net.e_prompt.prompt[:, :, task - 1 : task]


def seen_keys(net: Any, task: int) -> nn.Parameter:
    """Leave out the keys of tasks to come, and return all."""
    keys = net.e_prompt.prompt_key
    net.e_prompt.prompt_key = nn.Parameter(keys[: task + 1].detach().clone())
    return keys


def run(ground: Ground, code: Path, *, dual: bool) -> Scores:
    """Train and score all tasks."""
    prepare(code, ground.device)
    import engine
    import prompt
    import vision_transformer

    engine.utils.MetricLogger.log_every = lambda _, batches, *__, **___: iter(batches)
    encoder = {
        "img_size": ground.sizes.size, "patch_size": 16, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS,
        "num_classes": ground.step * ground.n,
    }  # fmt: skip
    pool = {
        "prompt_length": 5, "embedding_key": "cls", "prompt_init": "uniform", "prompt_pool": True, "prompt_key": True,
        "prompt_key_init": "uniform", "batchwise_prompt": False,
    }  # fmt: skip
    if dual:
        exchange_axes(prompt.EPrompt)
        pool |= {
            "pool_size": ground.n, "top_k": 1, "head_type": "token", "use_prompt_mask": True,
            "use_g_prompt": True, "g_prompt_length": 5, "g_prompt_layer_idx": [0, 1],
            "use_prefix_tune_for_g_prompt": True, "use_e_prompt": True, "e_prompt_layer_idx": [2, 3, 4],
            "use_prefix_tune_for_e_prompt": True,
        }  # fmt: skip
    else:
        pool |= {"pool_size": 10, "top_k": 2, "head_type": "prompt", "use_prompt_mask": False}
    net = vision_transformer.VisionTransformer(**encoder, **pool)
    original = vision_transformer.VisionTransformer(**encoder)
    state = ground.weights()
    fill(original, state)
    if not dual:  # prompt tokens have positions of their own
        side = ground.sizes.size // 16
        state["pos_embed"] = vision_transformer.resize_pos_embed(state["pos_embed"], net.pos_embed, 1, (side, side))
    fill(net, state)
    new_head(net.head)
    freeze(net)
    original.requires_grad_(False)
    net.to(ground.device)
    original.to(ground.device).eval()

    args, scores = settings(ground, pull_constraint_coeff=1.0 if dual else 0.1), Scores(ground)
    for t in range(ground.n):
        if t and dual:
            copy_expert(net, t)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=ground.sizes.scaled_rate)
        batches = Passes(ground, t)
        for epoch in range(ground.sizes.passes):
            engine.train_one_epoch(
                net, original, nn.CrossEntropyLoss(), batches, optimizer, ground.device, epoch, 1.0, True, t,
                class_masks(ground), args,
            )  # fmt: skip
        net.eval()
        keys = seen_keys(net, t) if dual else None
        seen = ground.step * (t + 1)
        scores.add(
            t,
            lambda x, seen=seen: net(x, cls_features=original(x)["pre_logits"])["logits"][:, :seen].argmax(1),
        )
        if dual:
            net.e_prompt.prompt_key = keys
    return scores
