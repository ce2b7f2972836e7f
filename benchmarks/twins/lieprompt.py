"""Public code of LiEPrompt (Frank-lilinjie/LiEPrompt), scored by its head before the pools grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.twins.ground import DEPTH, DIM, HEADS, Ground, Scores, fill
from benchmarks.twins.patches import data_of, prepare

ENCODER = ["blocks", "patch_embed", "cls_token", "norm", "pos_embed"]


def run(ground: Ground, code: Path) -> Scores:
    """Train and score all tasks."""
    prepare(code, ground.device)
    import models.lieprompt
    import utils.inc_net
    from backbone import vit_lieprompt
    from backbone.linears import CosineLinear

    def encoder(*_: Any, **__: Any) -> nn.Module:
        model = vit_lieprompt.VisionTransformer(
            img_size=ground.sizes.size, patch_size=16, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
            num_classes=ground.step * ground.n, head_type="token", prompt_length=5, top_k=0,
            use_prefix_tune_for_prompt=True, pool_size=5, prompt_pool=True, use_prompt_key=True,
            prompt_key_init="uniform",
        )  # fmt: skip
        fill(model, ground.weights())
        return model

    utils.inc_net.get_backbone = encoder
    utils.inc_net.LiEpromptNet.generate_indicator = lambda _, __, n: CosineLinear(DIM, n).to(ground.device)
    manager, models.lieprompt.DataLoader = data_of(ground)
    learner = models.lieprompt.Learner({
        "memory_size": 0, "device": [ground.device], "dataset": "images", "batch_size": ground.sizes.batch,
        "init_lr": 0.001, "tuned_epoch": ground.sizes.passes, "weight_decay": 0.0, "min_lr": 1e-5, "pool_size": 5,
        "layer_topk": 3, "seed": 0, "add_num": 3, "ca_lr": 0.005, "crct_epochs": 10, "init_cls": ground.step,
        "increment": ground.step, "freeze": ENCODER, "optimizer": "adam", "scheduler": "constant",
        "ca_storage_efficient_method": "covariance", "orthogonal_loss_weight": 0.1, "backbone_type": "vit",
        "model_name": "lieprompt",
    })  # fmt: skip
    net, scores = learner._network, Scores(ground)
    net.to(ground.device)
    pools = net.backbone.mixprompt
    grow, late = pools.update_prompt_layer, []
    pools.update_prompt_layer = lambda layer_idx, add_num: late.append((layer_idx, add_num))
    for t in range(ground.n):
        while late:
            layer, more = late.pop()
            grow(layer_idx=layer, add_num=more)
            net.to(ground.device)
        learner.incremental_train(manager())
        net.to(ground.device).eval()
        seen = ground.step * (t + 1)
        scores.add(t, lambda x, seen=seen: net(x, train=False)[0]["logits"][:, :seen].argmax(1))
        learner.after_task()
    return scores
