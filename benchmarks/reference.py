"""Plain implementations of methods for comparison: fp32, without caches or work shared between tasks.

As in script collections, the query is a second full pass, and so is a teacher. Every task has a pass, and choices per
sample run in a loop over samples. Weights and learned parameters come from a method of the package, so that both sides
compute the same numbers; ``tests/unit/test_benchmarks.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.methods.cl_lora import CLLoRA
from ostinato.methods.dualprompt import DualPrompt
from ostinato.methods.lieprompt import LiEPrompt
from ostinato.methods.parts.prefixes import Prefixes
from ostinato.methods.soft_tf import SoftTF
from ostinato.nn.distillation import distillation
from ostinato.nn.keys import LearnedKeys


@dataclass
class Layer:
    """Changes of a layer: prefixes (B | 1, P, D) and masked or low-rank weights by map."""

    keys: Tensor | None = None
    values: Tensor | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)  # (out, in)
    updates: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # (r, in), (out, r)


Layers = Mapping[int, Layer]
PLAIN = Layer()


def encode(
    backbone: Backbone,
    x: Tensor,
    layers: Layers | Callable[[int, Tensor], Layer] | None = None,
    stop: int | None = None,
) -> Tensor:
    """Features (B, D) of images, layer after layer, every token to the end."""
    layers = layers or {}
    h = backbone.embed(x).h
    for i, block in enumerate(backbone.encoder.blocks[:stop]):
        layer = layers(i, h) if callable(layers) else layers.get(i, PLAIN)
        h = h + _attention(block.attn, block.norm1(h), layer)
        z = block.norm2(h)
        z = F.gelu(_linear(z, "fc1", block.mlp.fc1.weight, block.mlp.fc1.bias, layer))
        h = h + _linear(z, "fc2", block.mlp.fc2.weight, block.mlp.fc2.bias, layer)
    return backbone.encoder.norm(h)[:, 0]


def _linear(x: Tensor, name: str, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
    if name in layer.masks:
        weight = weight * layer.masks[name]
    y = F.linear(x, weight, bias)
    if name in layer.updates:
        down, up = layer.updates[name]
        y = y + x @ down.T @ up.T
    return y


def _attention(attn: torch.nn.Module, x: Tensor, layer: Layer) -> Tensor:
    b, n, d = x.shape
    weights, biases = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    q, k, v = (_linear(x, name, w, c, layer) for name, w, c in zip("qkv", weights, biases, strict=True))
    if layer.keys is not None and layer.values is not None:
        k = torch.cat([layer.keys.expand(b, -1, -1), k], dim=1)
        v = torch.cat([layer.values.expand(b, -1, -1), v], dim=1)
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (d // attn.heads) ** -0.5
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
    return _linear(out, "proj", attn.proj.weight, attn.proj.bias, layer)


# DualPrompt


def _prompted(method: DualPrompt | SoftTF, experts: Tensor) -> Layers:
    """Layers under experts (B | 1, E layers, 2, P, D)."""
    prompts = cast(Prefixes, method.prompts)
    general = {i: Layer(g[None, 0], g[None, 1]) for i, g in zip(prompts.g_layers, prompts.g_prompt, strict=True)}
    return general | {i: Layer(experts[:, j, 0], experts[:, j, 1]) for j, i in enumerate(prompts.e_layers)}


def dualprompt_loss(method: DualPrompt, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a batch of the newest task."""
    with torch.no_grad():
        query = encode(method.backbone, x)
    features = encode(method.backbone, x, _prompted(method, method.prompts.e_prompt[-1][None]))
    pull = F.cosine_similarity(query, cast(LearnedKeys, method.keys).keys[-1][None]).mean()
    return method.head.loss(features, y) - cast(LearnedKeys, method.keys).weight * pull


def dualprompt_scores(method: DualPrompt, x: Tensor) -> Tensor:
    """Scores (B, n_seen)."""
    query = F.normalize(encode(method.backbone, x), dim=1)
    keys = F.normalize(torch.stack(list(cast(LearnedKeys, method.keys).keys)), dim=1)
    tasks = (query @ keys.T).argmax(1)
    return method.head(encode(method.backbone, x, _prompted(method, torch.stack(list(method.prompts.e_prompt))[tasks])))


# CL-LoRA


def _adapted(method: CLLoRA, shared_up: Tensor, task: int | None) -> Layers:
    """Layers under the shared adapter and, unless None, those of a task."""
    layers = {
        i: Layer(updates={"q": (p[0], u[0]), "v": (p[1], u[1])})
        for i, p, u in zip(method.shared_layers, method.shared_down, shared_up, strict=True)
    }
    if task is not None:
        down, up, mu = method.downs[task], method.ups[task], method.block_weights()[task]
        for j, i in enumerate(method.specific_layers):
            layers[i] = Layer(updates={"q": (down[j, 0], mu[0, j] * up[j, 0]), "v": (down[j, 1], mu[2, j] * up[j, 1])})
    return layers


def cl_lora_losses(method: CLLoRA, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The loss terms of a batch of the newest task, teacher and student in separate passes."""
    first = method.n_seen - len(method.proxy.weight)
    features = encode(method.backbone, x, _adapted(method, method.shared_up, method.n_tasks - 1))
    student = encode(method.backbone, x, _adapted(method, method.shared_up, None), stop=method.exit)
    with torch.no_grad():
        teacher = encode(method.backbone, x, _adapted(method, method.teacher_up, None), stop=method.exit)
    mu = torch.stack(list(method.mu)).flatten(1)
    return {
        "ce": F.cross_entropy(method.proxy(features), y - first),
        "kd": method.kd * distillation(method.proxy(student), method.proxy(teacher), method.tau),
        "ortho": method.ortho * F.cosine_similarity(mu[-1:], mu[:-1]).abs().mean(),
    }


def cl_lora_scores(method: CLLoRA, x: Tensor) -> Tensor:
    """Scores (B, n_seen), a full pass per task."""
    means = method.class_means.means().split(method.task_sizes.tolist())
    parts = []
    for task, rows in enumerate(means):
        features = encode(method.backbone, x, _adapted(method, method.shared_up, task))
        parts.append(F.normalize(features, dim=1) @ F.normalize(rows, dim=1).T)
    return torch.cat(parts, dim=1)


# Soft-TransFormers


def _masked(method: SoftTF, task: int) -> Layers:
    """Layers under the prompts and masks of a task."""
    layers = dict(_prompted(method, cast(Prefixes, method.prompts).e_prompt[task][None]))
    for i, maps in method.linear(task).items():
        masks = {name: edit.mask for name, edit in maps.items() if edit.mask is not None}
        layers[i] = Layer(layers[i].keys, layers[i].values, masks)
    return layers


def soft_tf_loss(method: SoftTF, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a batch of the newest task; its key is set before training."""
    return method.head.loss(encode(method.backbone, x, _masked(method, method.n_tasks - 1)), y)


def soft_tf_scores(method: SoftTF, x: Tensor) -> Tensor:
    """Scores (B, n_seen) under the task of least entropy, a full pass per task."""
    everything = []
    for task in range(method.n_tasks):
        everything.append(method.head(encode(method.backbone, x, _masked(method, task))))
    scores = torch.stack(everything)
    log = scores.log_softmax(-1)
    best = -(log.exp() * log).sum(-1)
    return scores[best.argmin(0), torch.arange(len(x), device=x.device)]


# LiEPrompt


def lieprompt_losses(method: LiEPrompt, x: Tensor, y: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The loss terms of a batch, with prompts selected sample by sample (``top_k`` of at least 1).

    ``noise`` (B, layers) has standard normal numbers for the gate.
    """
    with torch.no_grad():
        frozen = encode(method.backbone, x)
    gate = (frozen @ method.router_weight[-1].T + method.router_bias[-1] + method.noise_std * noise).softmax(-1)
    features = encode(method.backbone, x, _gated(method, gate))
    balance = (gate.mean(0) - 1 / gate.shape[1]).square().mean()
    return {
        "ce": method.head.loss(features, y),
        "balance": method.balance * balance,
        "ortho": method.ortho * method.overlap(),
    }


def lieprompt_scores(method: LiEPrompt, x: Tensor) -> Tensor:
    """Scores (B, n_seen) with a hard gate, under the router of the task of the nearest class mean."""
    query = encode(method.backbone, x)
    near = F.normalize(query, dim=1) @ F.normalize(method.class_means.means(), dim=1).T
    gates = []
    for sample, nearest in zip(query, near.argmax(1).tolist(), strict=True):
        task = int(method.task_of_class[nearest])
        share = (method.router_weight[task] @ sample + method.router_bias[task]).softmax(-1)
        gates.append((share > 1 / len(share)).float())
    return method.head(encode(method.backbone, x, _gated(method, torch.stack(gates))))


def _gated(method: LiEPrompt, gate: Tensor) -> Callable[[int, Tensor], Layer]:
    """Layers with their selected prompts, weighted by a gate (B, layers)."""

    def layer(i: int, h: Tensor) -> Layer:
        pool = method.pools[i]
        prompts, keys = pool.all_prompts(), F.normalize(pool.all_keys(), dim=1)
        chosen = []
        for sample in F.normalize(h.detach().amax(1), dim=1):
            ids = (keys @ sample).topk(method.top_k).indices
            chosen.append(torch.cat([prompts[j] for j in ids.tolist()], dim=1))
        both = torch.stack(chosen) * gate[:, i, None, None, None]
        return Layer(both[:, 0], both[:, 1])

    return layer
