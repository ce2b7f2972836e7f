"""The lookup of frozen features."""

import pytest
import torch
from tests.conftest import random_backbone

from ostinato.backbones.cache import FeatureCache


class Counting:
    """Stands for a backbone: features are a function of each image, and every image it runs on is counted."""

    def __init__(self, width=4):
        self.images = 0
        self.calls = 0
        self.width = width

    def __call__(self, images):
        self.calls += 1
        self.images += len(images)
        weight = torch.randn(images[0].numel(), self.width, generator=torch.Generator().manual_seed(0))
        return images.float().flatten(1) @ weight


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_same_features_as_the_backbone():
    backbone, cache, x = random_backbone(depth=2), FeatureCache(), images(5)
    want = backbone(x)
    torch.testing.assert_close(cache.features(backbone, x), want)
    torch.testing.assert_close(cache.features(backbone, x.flip(0)), want.flip(0))
    torch.testing.assert_close(cache.features(backbone, torch.cat([images(2, seed=1), x[3:]]))[2:], want[3:])


def test_the_backbone_runs_on_unknown_images_only():
    backbone, cache, x = Counting(), FeatureCache(), images(6)
    cache.features(backbone, x[:4])
    assert (backbone.calls, backbone.images) == (1, 4)
    cache.features(backbone, x[:4])
    assert (backbone.calls, backbone.images) == (1, 4)
    got = cache.features(backbone, x[[5, 2, 4, 0]])
    assert (backbone.calls, backbone.images) == (2, 6)
    assert torch.equal(got, Counting()(x[[5, 2, 4, 0]]))
    assert len(cache) == 6


def test_one_pixel_makes_another_image():
    backbone, cache, x = Counting(), FeatureCache(), images(1)
    cache.features(backbone, x)
    for place in ((0, 0, 0, 0), (0, 1, 3, 4), (0, 2, 7, 7)):
        other = x.clone()
        other[place] ^= 1
        assert torch.equal(cache.features(backbone, other), Counting()(other))
    assert backbone.images == 4


def test_the_same_image_twice_in_a_batch():
    backbone, cache = Counting(), FeatureCache()
    x = images(3)[[0, 1, 0, 2, 1, 0]]
    assert torch.equal(cache.features(backbone, x), Counting()(x))
    assert len(cache) == 3
    assert cache._bytes == 3 * 16, "counted once"
    assert torch.equal(cache.features(backbone, x), Counting()(x))
    assert backbone.calls == 1


def test_strided_and_float_images():
    backbone, cache = Counting(), FeatureCache()
    x = images(4).transpose(2, 3)
    assert not x.is_contiguous()
    torch.testing.assert_close(cache.features(backbone, x), Counting()(x))
    torch.testing.assert_close(cache.features(backbone, x.contiguous()), Counting()(x))
    assert backbone.calls == 1
    floats = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(cache.features(backbone, floats), Counting()(floats))


@pytest.mark.parametrize("entries", [1, 3])
def test_memory_is_bounded_and_the_oldest_go_first(entries):
    row = 4 * 4 + 200
    backbone, cache, x = Counting(), FeatureCache(max_bytes=entries * row), images(8)
    for i in range(8):
        cache.features(backbone, x[i : i + 1])
        assert len(cache) <= entries
        assert cache._bytes == 16 * len(cache)
    assert len(cache) == entries
    cache.features(backbone, x[8 - entries :])
    assert backbone.images == 8, "the newest are remembered"
    cache.features(backbone, x[:1])
    assert backbone.images == 9, "the oldest are not"


def test_a_batch_larger_than_the_memory_is_still_right():
    backbone, cache, x = Counting(), FeatureCache(max_bytes=2 * 216), images(6)
    cache.features(backbone, x[:2])
    assert torch.equal(cache.features(backbone, x), Counting()(x))
    assert len(cache) == 2
    assert torch.equal(cache.features(backbone, x.flip(0)), Counting()(x.flip(0)))


def test_a_remembered_row_does_not_keep_its_whole_batch_alive():
    """A view would, and the bound on memory would mean nothing."""
    cache = FeatureCache()
    cache.features(Counting(), images(8))
    assert {row.untyped_storage().nbytes() for row in cache._rows.values()} == {16}


def test_what_is_remembered_does_not_share_memory_with_what_was_given():
    backbone, cache, x = Counting(), FeatureCache(), images(2)
    first = cache.features(backbone, x)
    want = first.clone()
    first.zero_()
    second = cache.features(backbone, x)
    assert torch.equal(second, want)
    second.zero_()
    assert torch.equal(cache.features(backbone, x), want)


def test_rows_from_inference_mode_can_be_used_outside():
    backbone, cache, x = random_backbone(depth=1), FeatureCache(), images(2)
    with torch.inference_mode():
        cache.features(backbone, x)
    features = cache.features(backbone, x)
    weight = torch.ones(16, requires_grad=True)
    (features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(0))
