"""Views: right pixels, right size, randomness from the generator alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from ostinato.errors import InputError
from ostinato.streams import EvalTransform, TrainTransform


def picture(width, height, seed=0):
    """A smooth picture with some texture, so that resampling has something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).int()


@pytest.mark.parametrize("side", [8, 32, 100, 300])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_square_images_agree_with_pillow(side, interpolation):
    image = picture(side, side)
    expected = image.resize((64, 64), getattr(Image.Resampling, interpolation.upper()))
    difference = (EvalTransform(64, interpolation)(image, None).int() - pixels(expected)).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.2


@pytest.mark.parametrize("size", [(90, 60), (60, 91), (64, 64), (300, 133)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.9])
def test_resize_then_centre_crop(size, crop):
    from torchvision.transforms.v2 import functional as tv

    image = picture(*size)
    resized = tv.resize(image, [round(48 / crop)], interpolation=tv.InterpolationMode.BICUBIC)
    expected = pixels(tv.center_crop(resized, [48, 48]))
    difference = (EvalTransform(48, crop=crop)(image, None).int() - expected).abs()
    assert difference.max() <= 4  # both round to 8 bits between the two directions
    assert difference.float().mean() < 0.4


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 1), (1, 40), (7, 5)])
@pytest.mark.parametrize("kind", ["photo", "glyph", "none"])
def test_extreme_shapes(size, kind):
    image = picture(*size)
    rng = np.random.default_rng(0)
    for transform in (
        EvalTransform(32),
        EvalTransform(32, crop=0.8),
        TrainTransform(32, kind=kind),
        TrainTransform(1, kind=kind),
    ):
        tensor = transform(image, rng)
        assert tensor.shape == (3, transform.size, transform.size)
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()


@pytest.mark.parametrize("kind", ["photo", "glyph"])
def test_random_views_come_from_the_generator_alone(kind):
    image = picture(40, 50)
    transform = TrainTransform(32, kind=kind)
    torch.manual_seed(1)
    first = transform(image, np.random.default_rng([1, 2, 3]))
    torch.manual_seed(2)
    assert torch.equal(first, transform(image, np.random.default_rng([1, 2, 3])))
    assert not torch.equal(first, transform(image, np.random.default_rng([1, 2, 4])))
    assert torch.equal(transform(image, None), EvalTransform(32)(image, None))


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_none_is_the_evaluation_view(crop):
    image = picture(40, 50)
    tensor = TrainTransform(32, kind="none", crop=crop)(image, np.random.default_rng(0))
    assert torch.equal(tensor, EvalTransform(32, crop=crop)(image, None))


def test_a_glyph_is_moved_within_the_crop_of_the_test():
    """A bright frame outside the crop is in no training image."""
    pixels = np.full((64, 64, 3), 30, np.uint8)
    pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:] = (np.uint8(255),) * 4
    image = Image.fromarray(pixels)
    brightest = [
        TrainTransform(32, kind="glyph", crop=crop)(image, np.random.default_rng(seed)).max().item()
        for crop in (0.5, 1.0)
        for seed in range(5)
    ]
    assert brightest == [30] * 5 + [255] * 5


def test_photo_mirrors_half_the_time_and_crops_as_told():
    width = 64
    ramp = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None] * 4, width, 0).repeat(3, 2)
    image = Image.fromarray(ramp)
    transform = TrainTransform(32, scale=(0.2, 0.5))
    mirrored, shares = 0, []
    for seed in range(400):
        row = transform(image, np.random.default_rng(seed))[0, 16].int()
        mirrored += int(row[-1] < row[0])
        shares.append(abs(int(row[-1] - row[0])) / 4 / width)
    assert 160 < mirrored < 240
    assert max(shares) <= np.sqrt(0.5 * 4 / 3) + 0.03
    assert min(shares) >= np.sqrt(0.2 * 3 / 4) - 0.06


def test_glyph_stays_close_and_keeps_its_background():
    ground = np.full((40, 40, 3), 30, np.uint8)
    ground[10:30, 18:22] = 255
    image = Image.fromarray(ground)
    mass = (EvalTransform(40)(image, None).float() - 30).clamp(min=0).sum()
    for seed in range(30):
        tensor = TrainTransform(40, kind="glyph")(image, np.random.default_rng(seed))
        assert set(tensor[:, 0, 0].tolist()) == {30}
        assert tensor.min() >= 25
        assert 0.75 < (tensor.float() - 30).clamp(min=0).sum() / mass < 1.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalTransform(0), "at least 1 pixel"),
        (lambda: EvalTransform(8, crop=0), r"crop must be in \(0, 1\]"),
        (lambda: EvalTransform(8, "bicubik"), "Did you mean 'bicubic'"),
        (lambda: TrainTransform(8, kind="foto"), "Did you mean 'photo'"),
        (lambda: TrainTransform(8, kind="none", crop=1.5), r"crop must be in \(0, 1\]"),
        (lambda: TrainTransform(8, scale=(0.5, 0.1)), "growing fractions"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("size", [0, 8193, 10**30])
def test_sizes_that_no_view_has(size):
    for transform in (EvalTransform, TrainTransform):
        with pytest.raises(InputError, match=r"size must be at least 1 pixel and at most 8,192, not"):
            transform(size)
