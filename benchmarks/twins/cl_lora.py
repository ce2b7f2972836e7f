"""Public code of CL-LoRA (JiangpengHe/CL-LoRA)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.twins.ground import DEPTH, DIM, HEADS, Ground, Scores, fill
from benchmarks.twins.patches import data_of, prepare


class Sgd(torch.optim.SGD):
    """SGD whose steps autograd does not see: the public code steps between a forward and its backward pass."""

    @torch.no_grad()
    def step(self, _: Any = None) -> None:
        """Take a step with momentum and weight decay."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                move = p.grad.data.add(p.data, alpha=group["weight_decay"])
                state = self.state[p]
                state["move"] = state["move"].mul_(group["momentum"]).add_(move) if "move" in state else move.clone()
                p.data.add_(state["move"], alpha=-group["lr"])


def run(ground: Ground, code: Path) -> Scores:
    """Train and score all tasks."""
    prepare(code, ground.device)
    import models.cllora
    import utils.inc_net
    from backbone import linears, vit_cllora

    step = ground.step
    # alpha, beta, classes of the first and of further tasks, width, use_init_ptm
    linears.CosineLinearFeature.forward_diagonal.__defaults__ = (0.0, 0.0, step, step, DIM, False)
    tuning = SimpleNamespace(
        use_distillation=True, use_block_weight=True, msa_adapt=True, msa=[1, 0, 1],
        specfic_pos=[6, 7, 8, 9, 10, 11], general_pos=[0, 1, 2, 3, 4, 5], ffn_adapt=True, ffn_option="parallel",
        ffn_adapter_layernorm_option="none", ffn_adapter_init_option="lora", ffn_adapter_scalar="0.1", ffn_num=8,
        d_model=DIM, attn_bn=8, vpt_on=False, vpt_num=0, _device=ground.device,
    )  # fmt: skip

    def encoder(*_: Any, **__: Any) -> nn.Module:
        model = vit_cllora.VisionTransformer(
            img_size=ground.sizes.size, patch_size=16, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=4,
            qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_classes=0, global_pool=False,
            drop_path_rate=0.0, tuning_config=tuning,
        )  # fmt: skip
        state = {}
        for key, value in ground.weights().items():
            if "attn.qkv" in key:
                state |= {key.replace("qkv", f"{n}_proj"): part for n, part in zip("qkv", value.chunk(3), strict=True)}
            else:
                state[key.replace("mlp.fc", "fc")] = value
        new = fill(model, state)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in new
        for i in model.general_pos:
            for j in (0, 2):
                model.cur_adapter[i][j].lora_B.weight.requires_grad_(False)
        model.out_dim = DIM
        return model.eval()

    utils.inc_net.get_backbone = encoder
    manager, models.cllora.DataLoader = data_of(ground)
    models.cllora.optim.SGD = Sgd
    passes = ground.sizes.passes
    learner = models.cllora.Learner({
        "memory_size": 0, "device": [ground.device], "batch_size": ground.sizes.batch, "init_lr": 0.03,
        "later_lr": 0.03, "init_epochs": passes, "later_epochs": passes, "weight_decay": 1e-4, "min_lr": 0,
        "init_cls": step, "increment": step, "use_old_data": False, "use_init_ptm": False, "use_diagonal": True,
        "recalc_sim": True, "alpha": 0.0, "beta": 0, "moni_adam": False, "adapter_num": -1, "optimizer": "sgd",
        "scheduler": "cosine", "backbone_type": "vit", "use_reweight": True, "model_name": "cllora",
    })  # fmt: skip
    net, scores = learner._network, Scores(ground)
    net.to(ground.device)
    for t in range(ground.n):
        learner.incremental_train(manager())
        net = learner._network.to(ground.device).eval()
        scores.add(t, lambda x, net=net: net(x, test=True)["logits"].argmax(1))
        learner.after_task()
    return scores
