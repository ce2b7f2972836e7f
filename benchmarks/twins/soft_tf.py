"""Public code of Soft-TransFormers (ihaeyong/Soft-TF), an id per image by the nearest key."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.twins.ground import DEPTH, DIM, HEADS, Ground, Scores, fill
from benchmarks.twins.patches import Passes, exchange_axes, freeze, prepare
from benchmarks.twins.pools import class_masks, copy_expert, new_head, seen_keys, settings

LAYERS = [9, 10, 11]


def run(ground: Ground, code: Path) -> Scores:
    """Train and score all tasks; masks start at 1, as here."""
    prepare(code, ground.device)
    import engine
    import prompt
    import vision_transformer

    exchange_axes(prompt.EPrompt)
    engine.utils.MetricLogger.log_every = lambda _, batches, *__, **___: iter(batches)
    encoder = {
        "img_size": ground.sizes.size, "patch_size": 16, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS,
        "num_classes": ground.step * ground.n, "head_type": "token",
    }  # fmt: skip
    net = vision_transformer.VisionTransformer(
        **encoder, prompt_length=5, embedding_key="cls", prompt_init="uniform", prompt_pool=True, prompt_key=True,
        pool_size=ground.n, top_k=1, batchwise_prompt=True, prompt_key_init="uniform", use_prompt_mask=True,
        use_g_prompt=True, g_prompt_length=5, g_prompt_layer_idx=[0, 1], use_prefix_tune_for_g_prompt=True,
        use_e_prompt=True, e_prompt_layer_idx=LAYERS, use_prefix_tune_for_e_prompt=True, target_layers=LAYERS,
        subnet="soft",
    )  # fmt: skip
    original = vision_transformer.VisionTransformer(
        **encoder, target_layers=[], g_prompt_layer_idx=[], use_prefix_tune_for_g_prompt=False
    )
    for model in (net, original):
        fill(model, ground.weights())
        model.to(ground.device)
    freeze(net)
    original.requires_grad_(False)
    original.eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "ones_weight" in name or "ones_bias" in name:
                parameter.fill_(1)
                parameter.requires_grad = "ones_weight" in name
        for parameter in (net.g_prompt, net.e_prompt.prompt, net.e_prompt.prompt_key):
            parameter.uniform_(-1, 1)
    new_head(net.head)
    net.apply(lambda part: setattr(part, "num_tasks", ground.n))
    net.apply(lambda part: setattr(part, "batchwise_prompt", True))

    args = settings(ground, pull_constraint_coeff=1.0, no_pgp=True, g_perturb_type="None", clip_grad=1.0)
    scores = Scores(ground)
    for t in range(ground.n):
        if t:
            copy_expert(net, t)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=ground.sizes.scaled_rate)
        batches = Passes(ground, t)
        for epoch in range(ground.sizes.passes):
            engine.train_one_epoch(
                net, original, None, None, nn.CrossEntropyLoss(), batches, optimizer, ground.device, epoch, 1.0, True,
                t, class_masks(ground), args,
            )  # fmt: skip
        net.eval()
        keys, seen = seen_keys(net, t), ground.step * (t + 1)

        def predict(x: Tensor, seen: int = seen) -> Tensor:
            query = original(x)["pre_logits"]
            near = F.normalize(query, dim=-1) @ F.normalize(net.e_prompt.prompt_key, dim=-1).T
            ids = near.argmax(1)
            answers = torch.empty_like(ids)
            for i in ids.unique().tolist():  # images of one id: the vote of their batch is that of each
                of = ids == i
                found = net(x[of], cls_features=query[of])
                if not bool((found["prompt_idx"] == i).all()):
                    raise ValueError(f"the public code gave another id than {i} to a batch of that id")
                answers[of] = found["logits"][:, :seen].argmax(1)
            return answers

        scores.add(t, predict)
        net.e_prompt.prompt_key = keys
    return scores
