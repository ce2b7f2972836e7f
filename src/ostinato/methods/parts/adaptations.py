"""Adaptations of every layer of an encoder: adapters beside the MLP, prompts of all layers, scales and shifts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ostinato.backbones import Arch, Backbone, Edit, LayerPlan, LinearEdit, prefix_from
from ostinato.backbones.edits import LINEARS, Affine, Bottleneck
from ostinato.choices import Choice, Options, Size
from ostinato.nn import PerTask


class Adaptation(nn.Module):
    """Base class: edits of all layers per task."""

    def begin_task(self, device: torch.device) -> None:
        """Add the parameters of a task."""
        raise NotImplementedError

    def plan(self, task: int) -> LayerPlan:
        """Plan of the edits of a task, counted from 0; -1 is the newest."""
        raise NotImplementedError


class ParallelAdapters(Adaptation):
    """AdaptFormer: ``scale (U relu(D h + b) + c)`` is added to the output of the MLP for the states h that enter it.

    Chen, Ge, Tong, Wang, Song, Wang, Luo: "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    NeurIPS 2022, https://arxiv.org/abs/2205.13535. D begins at numbers from U(-1, 1) / sqrt(width), the others at 0. In
    training a share of the hidden numbers is dropped.

    Args:
        arch: sizes of the encoder.
        options: of the adapters.
    """

    def __init__(self, arch: Arch, options: AdapterOptions) -> None:
        super().__init__()
        self.arch, self.rank, self.scale, self.dropout = arch, options.rank, options.scale, options.dropout
        self.down, self.up = PerTask(), PerTask()  # T of (layers, r, D) and of (layers, D, r)
        self.down_bias, self.up_bias = PerTask(), PerTask()  # T of (layers, r) and of (layers, D)

    def begin_task(self, device: torch.device) -> None:
        """Add an adapter of every layer."""
        n, d, r = self.arch.depth, self.arch.dim, self.rank
        self.down.add(torch.empty(n, r, d, device=device).uniform_(-(d**-0.5), d**-0.5))
        self.up.add(torch.zeros(n, d, r, device=device))
        self.down_bias.add(torch.zeros(n, r, device=device))
        self.up_bias.add(torch.zeros(n, d, device=device))

    def plan(self, task: int) -> LayerPlan:
        """Adapters of a task."""
        dropout = self.dropout if self.training else 0.0
        parts = self.down[task], self.scale * self.up[task], self.down_bias[task], self.scale * self.up_bias[task]
        return LayerPlan(
            {
                layer: Edit(adapter=Bottleneck(*(part[layer] for part in parts), dropout=dropout))
                for layer in range(self.arch.depth)
            }
        )


class DeepPrompts(Adaptation):
    """VPT-deep: prompts enter every layer beside its tokens, and leave after it.

    Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim: "Visual Prompt Tuning", ECCV 2022,
    https://arxiv.org/abs/2203.12119. What a prompt becomes is dropped, so that only its keys and values act on the
    tokens: these are computed, and given as prefixes. Prompts begin at numbers from U(-v, v), v^2 = 3 / width.

    Args:
        backbone: the frozen encoder.
        length: prompts per layer.
    """

    def __init__(self, backbone: Backbone, length: int) -> None:
        super().__init__()
        # The bound method is no module, so that the weights of the backbone are not parameters of the prompts.
        self.arch, self.keys_values, self.length = backbone.arch, backbone.keys_values, length
        self.prompts = PerTask()  # T of (layers, P, D)

    def begin_task(self, device: torch.device) -> None:
        """Add prompts of every layer."""
        n, d = self.arch.depth, self.arch.dim
        self.prompts.add(torch.empty(n, self.length, d, device=device).uniform_(-((3 / d) ** 0.5), (3 / d) ** 0.5))

    def plan(self, task: int) -> LayerPlan:
        """Keys and values of a task's prompts."""
        edits: dict[int, Edit] = {}
        for layer, prompts in enumerate(self.prompts[task]):
            keys_values = torch.stack(self.keys_values(layer, prompts))[None]
            edits[layer] = Edit(prefix=prefix_from(keys_values, self.arch.heads))
        return LayerPlan(edits)


class ScalesAndShifts(Adaptation):
    """SSF: the output y of every linear map and norm of a layer becomes ``gamma * y + beta``.

    Lian, Zhou, Feng, Wang: "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022,
    https://arxiv.org/abs/2210.08823. Scales begin around 1 and shifts around 0, with a standard deviation of 0.02.

    Args:
        arch: sizes of the encoder.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.sizes = [*(arch.shape_of(name)[0] for name in LINEARS), arch.dim, arch.dim]  # norms are last
        self.scales, self.shifts = PerTask(), PerTask()  # T of (layers, all outputs)

    def begin_task(self, device: torch.device) -> None:
        """Add scales and shifts of every layer."""
        for part, mean in ((self.scales, 1.0), (self.shifts, 0.0)):
            part.add(torch.empty(self.arch.depth, sum(self.sizes), device=device).normal_(mean, 0.02))

    def plan(self, task: int) -> LayerPlan:
        """Scales and shifts of a task."""
        edits: dict[int, Edit] = {}
        for layer in range(self.arch.depth):
            scales, shifts = (part[task][layer].split(self.sizes) for part in (self.scales, self.shifts))
            maps = {
                name: LinearEdit(scale=gamma, bias=beta)
                for name, gamma, beta in zip(LINEARS, scales[:-2], shifts[:-2], strict=True)
            }
            norm1, norm2 = (Affine(*each) for each in zip(scales[-2:], shifts[-2:], strict=True))
            edits[layer] = Edit(linear=maps, norm1=norm1, norm2=norm2)
        return LayerPlan(edits)


class AdaptationOptions(Options, frozen=True):
    """Base class of the options of an adaptation."""

    def build(self, backbone: Backbone) -> Adaptation:
        """Make the adaptation."""
        raise NotImplementedError


class AdapterOptions(AdaptationOptions, frozen=True):
    """Options of adapters beside the MLP.

    Attributes:
        rank: width r of a bottleneck.
        scale: factor on the output.
        dropout: share of hidden numbers dropped in training.
    """

    name: Literal["adapter"] = "adapter"
    rank: Size = 64
    scale: Annotated[float, Field(gt=0)] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def build(self, backbone: Backbone) -> ParallelAdapters:
        """Make the adapters."""
        return ParallelAdapters(backbone.arch, self)


class DeepPromptOptions(AdaptationOptions, frozen=True):
    """Options of prompts of all layers.

    Attributes:
        length: prompts per layer.
    """

    name: Literal["vpt"] = "vpt"
    length: Size = 5

    def build(self, backbone: Backbone) -> DeepPrompts:
        """Make the prompts."""
        return DeepPrompts(backbone, self.length)


class ScaleShiftOptions(AdaptationOptions, frozen=True):
    """Scales and shifts."""

    name: Literal["ssf"] = "ssf"

    def build(self, backbone: Backbone) -> ScalesAndShifts:
        """Make the scales and shifts."""
        return ScalesAndShifts(backbone.arch)


ADAPTATIONS = Choice[AdaptationOptions](AdapterOptions(), DeepPromptOptions(), ScaleShiftOptions())
"""Adaptations; adapters are the default."""
