"""Soft-TransFormers and its rivals: masks, subnetworks, adapters, low-rank updates, and how a task is inferred."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ostinato.backbones import Arch, LayerPlan, LinearEdit, Preprocess, Tokens, VisionBackbone
from ostinato.backbones.edits import edited_linear, per_task
from ostinato.contract.harness import SETTINGS, learn, learn_task_of, make
from ostinato.contract.tiny_models import random_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.methods.adapter import Adapter
from ostinato.methods.lora import LoRA
from ostinato.methods.parts.task_edits import edited
from ostinato.methods.soft_tf import SoftTF
from ostinato.methods.wsn import WSN
from ostinato.nn import entropy
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.masks import initial_mask, keep_largest
from ostinato.registry import check_options
from ostinato.training.loop import learn_task

CPU = torch.device("cpu")
FAMILY = ["soft_tf", "wsn", "adapter", "lora"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def vit_b() -> VisionBackbone:
    with torch.device("meta"):
        return VisionBackbone(
            Arch(dim=768, depth=12, heads=12, mlp_dim=3072),
            patch=16,
            preprocess=Preprocess(224, (0.5,) * 3, (0.5,) * 3),
        )


def taught(name="soft_tf", tasks=3, **options):
    """Three tasks whose edits differ clearly, without the time of training."""
    stream = tiny_stream()
    method = make(name, **options)
    with torch.enable_grad():
        learn(method, stream, upto=tasks, settings=replace(SETTINGS, overrides={"epochs": 1, "batch_size": 24}))
    for i, p in enumerate(method.parameters()):
        if not any(p is q for q in method.backbone.parameters()):
            p.data += 0.2 * draw(*p.shape, seed=i)
            p.grad = None
    return method


# What is trained


@pytest.mark.parametrize(
    ("layers", "variant", "count"),
    [
        ((11,), "attn", 1_769_472),
        ((11,), "attn+proj", 2_359_296),
        ((10, 11), "attn+proj", 4_718_592),
        ((9, 10, 11), "attn+proj", 7_077_888),
        ((11,), "ff", 7_077_888),
    ],
)
def test_masks_of_vit_b_have_the_published_sizes(layers, variant, count):
    method = SoftTF(vit_b(), layers=layers, variant=variant)
    method.bank.begin_task(CPU)
    assert sum(p.numel() for p in method.bank.parameters()) == count


class Only:
    """As much of a task as ``begin_task`` reads."""

    index, classes = 0, range(10)


@pytest.mark.parametrize(
    ("cls", "options", "count"),
    [
        (LoRA, {"rank": 4}, 55_296),
        (LoRA, {"rank": 24}, 331_776),
        (LoRA, {"rank": 500}, 6_912_000),
        (Adapter, {"rank": 300}, 6_912_000),
        (Adapter, {"rank": 75, "layers": tuple(range(12)), "base": "none"}, 6_912_000),
        (Adapter, {"rank": 1, "layers": tuple(range(12)), "base": "none"}, 92_160),
        (Adapter, {"rank": 4, "layers": tuple(range(12)), "base": "none"}, 368_640),
    ],
)
def test_budgets_of_the_baselines_on_vit_b(cls, options, count):
    method = cls(vit_b(), **options)
    method.begin_task(Only())
    assert sum(p.numel() for p in method.bank.parameters()) == count


def test_dualprompt_below_has_its_published_size():
    method = SoftTF(vit_b())
    method.begin_task(Only())
    prompts = sum(p.numel() for p in (method.prompts.g_prompt, *method.prompts.e_prompt, *method.keys.keys))
    assert prompts == 39_168


# A fresh edit changes nothing


@pytest.mark.parametrize("name", ["soft_tf", "adapter", "lora"])
@pytest.mark.parametrize("base", ["dualprompt", "l2p", "none"])
def test_training_begins_at_the_prompt_method(name, base):
    method = make(name, base=base)
    with torch.no_grad():
        method.begin_task(learn_task_of(method, tiny_stream(), 0))
        x = pixels(3)
        prompts, tokens = method.prompts, method.prompts.enter(x, method.query)[0]
        changed = prompts.read(tokens, edited(prompts.under(-1), method.linear(-1)))
        plain = prompts.read(tokens, LayerPlan(prompts.under(-1)))
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-6)
    if base == "none":
        torch.testing.assert_close(changed, method.backbone(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "xavier", "kaiming", "normal"])
def test_initialisations_of_the_ablation(kind):
    torch.manual_seed(0)
    mask = initial_mask(64, 32, kind, device=CPU)
    spread = {"uniform": 0.01 / 12**0.5, "xavier": (2 / (64 * 32 + 32)) ** 0.5, "kaiming": (64 * 32 * 3) ** -0.5}
    assert mask.shape == (64, 32)
    assert mask.std().item() == pytest.approx(spread.get(kind, 0.01), rel=0.1)
    assert mask.mean().item() == pytest.approx(0.995 if kind == "uniform" else 0, abs=2e-3)


# Old tasks never change


@pytest.mark.parametrize("name", FAMILY)
def test_private_parts_of_old_tasks_and_their_rows_are_bit_equal(name):
    stream = tiny_stream()
    method = learn(make(name, base="dualprompt"), stream, upto=1)
    before = [e.mask if e.mask is not None else e.outer if e.outer is not None else e.up for e in edits_of(method, 0)]
    before = [t.detach().clone() for t in before]
    own = [t.detach().clone() for t in private(method)]
    learn_task(method, learn_task_of(method, stream, 1), SETTINGS)
    after = [e.mask if e.mask is not None else e.outer if e.outer is not None else e.up for e in edits_of(method, 0)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(own, private(method), strict=True))


def private(method):
    return method.prompts.e_prompt[0], method.keys.keys[0], method.head.weight[0], method.head.bias[0]


def edits_of(method, task):
    return [edit for maps in method.linear(task).values() for edit in maps.values()]


@pytest.mark.parametrize("name", FAMILY)
def test_training_moves_what_belongs_to_the_task(name):
    stream = tiny_stream()
    method = make(name)
    method.begin_task(learn_task_of(method, stream, 0))
    before = [p.detach().clone() for p in method.parameters() if p.requires_grad]
    named = [n for n, p in method.named_parameters() if p.requires_grad]
    other = learn(make(name), stream, upto=1)
    after = [p for p in other.parameters() if p.requires_grad]
    same = {n for n, a, b in zip(named, before, after, strict=True) if torch.equal(a, b.detach())}
    assert not {n for n in same if not n.startswith("keys")}


# One pass, however it is grouped


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("base", ["dualprompt", "l2p", "none"])
@torch.no_grad()
def test_samples_of_mixed_tasks_equal_each_under_its_own(name, base):
    method = taught(name, base=base).eval()
    x, tasks = pixels(7), torch.tensor([2, 0, 1, 1, 2, 0, 2])
    together = method.scores_given_task(x, tasks)
    alone = torch.cat([method.scores_given_task(x[i : i + 1], tasks[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    every = method.scores_all_tasks(x)
    assert every.shape == (3, 7, 5)
    torch.testing.assert_close(every[tasks, torch.arange(7)], together, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(every[0], every[1], atol=1e-2), "the tasks differ"


@torch.no_grad()
def test_chunks_of_samples_change_nothing(monkeypatch):
    method = taught().eval()
    whole = method.scores_all_tasks(pixels(6))
    monkeypatch.setattr("ostinato.methods.parts.task_edits.ROWS", 4)
    torch.testing.assert_close(method.scores_all_tasks(pixels(6)), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("field", ["mask", "down", "inner"])
def test_edits_joined_over_tasks_equal_a_loop(field):
    shapes = {
        "mask": [("mask", (6, 4))],
        "down": [("down", (2, 4)), ("up", (6, 2))],
        "inner": [("inner", (2, 6)), ("outer", (6, 2))],
    }
    edits = [LinearEdit(**{n: draw(*s, seed=i + len(n)) for n, s in shapes[field]}) for i in range(3)]
    x, w, b = draw(3, 5, 7, 4), draw(6, 4, seed=9), draw(6, seed=10)
    want = torch.stack([edited_linear(x[t], w, b, edits[t]) for t in range(3)])
    torch.testing.assert_close(edited_linear(x, w, b, per_task(edits)), want, atol=1e-5, rtol=1e-5)


# Which task


def alpha_gradient(method, x, top=None):
    """-dH/d alpha by autograd, one sample after another, with the superposition written out."""
    rows = []
    for i in range(len(x)):
        alpha = torch.full((method.n_tasks,), 1 / method.n_tasks, requires_grad=True)
        each = [method.linear(t) for t in range(method.n_tasks)]
        linear = {
            layer: {
                name: LinearEdit(mask=sum(alpha[t] * each[t][layer][name].mask.detach() for t in range(method.n_tasks)))
                for name in each[0][layer]
            }
            for layer in each[0]
        }
        key = torch.nn.functional.cosine_similarity(method.query(x[i : i + 1]), method.keys.keys.stacked()).argmax()
        plan = edited(method.prompts.under(int(key)), linear)
        logits = method.head(method.prompts.read(Tokens(method.shared(x[i : i + 1]).h), plan, start=method.split))
        (grad,) = torch.autograd.grad(entropy(logits, top).sum(), alpha)
        rows.append(-grad)
    rows = torch.stack(rows)
    return rows - rows.mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["soft_tf", "wsn"])
@pytest.mark.parametrize("base", ["dualprompt", "l2p", "none"])
@pytest.mark.parametrize(("over", "top"), [("seen", None), ("top", 2), ("benchmark", 4)])
def test_gradient_id_equals_autograd_in_alpha(name, base, over, top):
    benchmark = {"benchmark_classes": 12} if over == "benchmark" else {}
    method = taught(name, base=base, task_id="gradient_id", entropy_over=over, **benchmark).eval()
    x = pixels(4)
    want = alpha_gradient(method, x, top=top)
    with torch.inference_mode():
        got = method.task_scores(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert want.abs().max() > 1e-3, "the comparison is not one of zeros"
    assert not any(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("rule", ["min_entropy", "max_score"])
@torch.no_grad()
def test_running_every_task_takes_the_surest(rule):
    method = taught(task_id=rule).eval()
    x = pixels(5)
    scores = torch.stack([method.scores_given_task(x, torch.full((5,), t)) for t in range(3)])
    p = scores.softmax(-1)
    want = (scores.amax(-1) if rule == "max_score" else (p * p.log()).sum(-1)).argmax(0)
    assert torch.equal(method.infer_task(x), want)


def test_the_classes_of_a_benchmark_go_with_its_rule():
    with pytest.raises(InputError, match=r"needs method\.benchmark_classes, .* at least 2, got 0"):
        taught(entropy_over="benchmark")
    with pytest.raises(InputError, match=r"benchmark_classes=12 has no effect with method\.entropy_over=top"):
        check_options(SoftTF, {"entropy_over": "top", "benchmark_classes": 12})


def test_entropy_over_the_top_logits():
    logits = torch.tensor([[2.0, 1.0, -50.0, 0.0]])
    p = torch.tensor([2.0, 1.0]).softmax(0)
    torch.testing.assert_close(entropy(logits, 2), -(p * p.log()).sum()[None])
    torch.testing.assert_close(entropy(torch.zeros(1, 8)), torch.tensor([8.0]).log())


@pytest.mark.parametrize("name", ["adapter", "lora"])
def test_gradient_id_needs_masks(name):
    """Said before anything is trained; and it is none of the rules that such a method is compared under."""
    with pytest.raises(InputError, match="use prompt_id"):
        taught(name, task_id="gradient_id")
    assert set(taught(name).rules()) == {"prompt_id", "min_entropy", "max_score"}


# Subnetworks


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.1])
def test_the_share_that_is_kept(keep):
    scores = draw(40, 50)
    mask = keep_largest(scores, keep)
    threshold = scores.abs().flatten().sort().values[round((1 - keep) * 1999)]
    assert torch.equal(mask, (scores.abs() >= threshold).float())
    assert mask.mean().item() == pytest.approx(keep, abs=1e-3)


def test_straight_through_gradient_reaches_all_scores():
    scores, weight, grad = draw(6, 5).requires_grad_(), draw(6, 5, seed=1), draw(6, 5, seed=2)
    (weight * keep_largest(scores, 0.5) * grad).sum().backward()
    torch.testing.assert_close(scores.grad, grad * weight * scores.detach().sign())


@pytest.mark.parametrize("kind", ["binary", "hybrid", "soft"])
def test_stored_masks_are_the_learned_ones(kind):
    stream = tiny_stream()
    method = make("wsn", kind=kind, keep=0.7)
    learn(method, stream, upto=1)
    bank = method.bank.maps["11"]["proj"]
    live = keep_largest(bank.scores, 0.7)
    assert torch.equal(bank.masks[0], live > 0)
    mask = method.linear(0)[11]["proj"].mask
    if kind == "binary":
        assert torch.equal(mask, live)
    if kind == "hybrid":
        assert torch.equal(mask, live * bank.values[0])
        assert bank.values[0].mean().item() == pytest.approx(0.995, abs=0.05)
    if kind == "soft":
        assert torch.equal(mask[live > 0], torch.ones_like(mask[live > 0]))
        assert 0.3 < mask[live == 0].mean() < 0.7
    learn_task(method, learn_task_of(method, stream, 1), SETTINGS)
    assert torch.equal(bank.masks[0], live > 0), "stored masks stay"
    assert not torch.equal(keep_largest(bank.scores, 0.7), live), "scores go on"


# Projection below the edits


@pytest.mark.parametrize("base", ["dualprompt", "l2p"])
def test_projected_prompts_below_masks(base):
    stream = tiny_stream()
    method = learn(make("soft_tf", base={"name": base, "pgp": 0.9}), stream, upto=1)
    before = [part.clone() for part in method.prompts.protected()]
    bases = [space.basis.clone() for space in method.prompts.projection]
    learn_task(method, learn_task_of(method, stream, 1), replace(SETTINGS, overrides={"epochs": 1, "batch_size": 8}))
    for part, old, basis in zip(method.prompts.protected(), before, bases, strict=True):
        assert (part - old).abs().max() > 1e-4
        assert ((part - old) @ basis).abs().max() < 1e-6


def test_no_prompts_nothing_to_project():
    with pytest.raises(InputError, match=r"method\.base\.pgp has no effect with method\.base=none"):
        SoftTF(random_backbone(), base={"name": "none", "pgp": 0.5})


# Options


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SoftTF, {"variant": "all"}, "variant"),
        (SoftTF, {"mask_init": "zeros"}, "mask_init"),
        (SoftTF, {"layers": (12,)}, "layers"),
        (SoftTF, {"layers": ()}, "at least one"),
        (SoftTF, {"base": "coda"}, "base"),
        (SoftTF, {"task_id": "oracle"}, "task_id"),
        (SoftTF, {"layers": (0, 1)}, "must not share"),
        (WSN, {"keep": 0.0}, "keep"),
        (WSN, {"kind": "hard"}, "kind"),
        (Adapter, {"rank": 0}, "rank"),
        (LoRA, {"scale": 0.0}, "scale"),
    ],
)
def test_wrong_options_are_named(cls, options, message):
    with pytest.raises(InputError, match=message):
        cls(random_backbone(), **options)


def test_options_of_the_prompts_belong_to_the_method():
    options = check_options(SoftTF, {"base": {"g_length": 3}, "layers": 5})
    assert options["base"]["g_length"] == 3
    assert options["layers"] == (5,)
    assert options["keys"] == {"name": "mean"}
    with pytest.raises(InputError, match=r"method\.base\.g_lenght: unknown key. Did you mean 'g_length'"):
        check_options(SoftTF, {"base": {"g_lenght": 3}})
    with pytest.raises(InputError, match=r"method\.g_length: .*method\.base=dualprompt method\.base\.g_length="):
        check_options(SoftTF, {"g_length": 3})


# Keys per class


@pytest.mark.parametrize("name", ["dualprompt", "soft_tf"])
def test_keys_per_class_find_the_task_of_the_nearest_class_mean(name):
    stream = tiny_stream()
    method = learn(make(name, keys="classes"), stream)
    x = pixels(9)
    with torch.no_grad():
        query = torch.nn.functional.normalize(method.backbone(x), dim=-1)
        means = []
        for i in range(len(stream)):
            images, labels = zip(*learn_task_of(method, stream, i).eval_batches(), strict=True)
            features = torch.nn.functional.normalize(method.backbone(torch.cat(images)).double(), dim=-1)
            labels = torch.cat(labels)
            means += [features[labels == c].mean(0) for c in stream.task(i).classes]
        nearest = (query @ torch.nn.functional.normalize(torch.stack(means), dim=-1).float().T).argmax(1)
        task_of = torch.tensor([0, 0, 1, 1, 2])
        assert torch.equal(method.infer_task(x), task_of[nearest])
    assert [len(k) for k in method.keys.keys] == [2, 2, 1]


def test_keys_that_are_set_are_not_optimised():
    stream = tiny_stream()
    method = make("soft_tf", keys="classes")
    learn(method, stream, upto=2)
    fresh = make("soft_tf", keys="classes")
    for i in range(2):
        task = learn_task_of(fresh, stream, i)
        fresh.begin_task(task)
        fresh.stages(task)[0].prepare()
    assert all(torch.equal(a, b) for a, b in zip(method.keys.keys, fresh.keys.keys, strict=True))


@pytest.mark.parametrize("name", ["dualprompt", "soft_tf"])
def test_gaussians_find_the_task_of_the_likeliest_class(name):
    stream = tiny_stream()
    method = learn(make(name, keys="gaussians"), stream)
    images, labels = [], []
    for i in range(len(stream)):
        for x, y in learn_task_of(method, stream, i).eval_batches():
            images.append(x)
            labels.append(y)
    x, labels = pixels(9), torch.cat(labels)
    with torch.no_grad():
        features = torch.nn.functional.normalize(method.backbone(torch.cat(images)).double(), dim=-1)
        query = torch.nn.functional.normalize(method.backbone(x).double(), dim=-1)
    whole = LinearDiscriminant(features.shape[1])
    whole.add(features, labels, 5)
    covariance = whole.covariance()
    torch.testing.assert_close(method.keys.discriminant.weight, whole.weight, rtol=1e-3, atol=1e-3)
    likelihood = [
        torch.distributions.MultivariateNormal(features[labels == c].mean(0), covariance).log_prob(query)
        for c in range(5)
    ]
    task_of = torch.tensor([0, 0, 1, 1, 2])
    assert torch.equal(method.infer_task(x), task_of[torch.stack(likelihood).argmax(0)])


def test_a_method_with_gaussians_goes_on_from_its_state():
    stream = tiny_stream()
    method, fresh = make("soft_tf", keys="gaussians"), make("soft_tf", keys="gaussians")
    learn(method, stream, upto=2)
    fresh.load_state_dict(method.state_dict())
    for each in (method, fresh):
        task = learn_task_of(each, stream, 2)
        torch.manual_seed(0)
        each.begin_task(task)
        each.stages(task)[0].prepare()
    assert torch.equal(method.keys.discriminant.weight, fresh.keys.discriminant.weight)
    assert len(fresh.keys.discriminant) == 5
