"""Rendered characters, and the bundled backbone that was trained on some of them."""

import unicodedata

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from ostinato.backbones.weights import embedded_backbone, load_backbone
from ostinato.errors import InputError
from ostinato.streams.glyphs import PRETRAIN, STREAM, class_name, drawn, fonts_with, glyphs, is_digit


def pixels(split, rows=None):
    return np.stack([np.asarray(split.load(i)) for i in (range(len(split)) if rows is None else rows)])


def test_the_sets_are_disjoint_and_large():
    assert len(set(PRETRAIN)) == len(PRETRAIN)
    assert len(set(STREAM)) == len(STREAM) >= 1000
    assert not set(PRETRAIN) & set(STREAM)


@pytest.mark.parametrize("characters", [PRETRAIN, STREAM], ids=["pretrain", "stream"])
def test_no_digits(characters):
    for c in characters:
        assert not is_digit(c), class_name(c)
        assert not unicodedata.category(c).startswith("N")
        assert unicodedata.digit(c, None) is None
        assert unicodedata.numeric(c, None) is None
        assert not any(d in unicodedata.normalize("NFKC", c) for d in "0123456789")


@pytest.mark.parametrize("character", list("07²₃①½Ⅷ٣㎡"))
def test_digits_in_disguise_are_digits(character):
    assert is_digit(character)


@pytest.mark.parametrize("characters", [PRETRAIN, STREAM], ids=["pretrain", "stream"])
def test_every_character_is_in_a_font_and_stands_alone(characters):
    for c in characters:
        assert fonts_with(c), class_name(c)
        assert unicodedata.category(c)[0] in "LSP", class_name(c)


def test_every_class_shows_ink_and_none_looks_like_an_earlier_one():
    seen = {np.asarray(drawn(c, fonts_with(c)[0], 32)).tobytes(): c for c in PRETRAIN + STREAM}
    assert len(seen) == len(PRETRAIN) + len(STREAM)
    assert bytes(32 * 32) not in seen


def test_a_source_as_asked_for():
    source = glyphs(7, per_class_train=3, per_class_test=2)
    assert (source.name, source.augment) == ("glyphs", "glyph")
    assert source.class_names == [class_name(c) for c in STREAM[:7]]
    assert source.train.labels.dtype == np.int64
    assert source.train.labels.tolist() == np.repeat(np.arange(7), 3).tolist()
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (21, 14)
    names = [split.name(i) for split in (source.train, source.test) for i in range(len(split))]
    assert len(set(names)) == len(names)


def test_all_classes_have_a_name_of_their_own():
    names = glyphs(len(STREAM), 1, 1).class_names
    assert len(set(names)) == len(STREAM)


def test_samples_are_bright_strokes_on_dark():
    image = glyphs(20).train.load(0)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    samples = pixels(glyphs(20, 5, 1).train)
    assert samples.dtype == np.uint8
    assert np.median(samples) < 30
    assert samples.max(axis=(1, 2, 3)).min() > 90
    assert (samples[..., 0] == samples[..., 2]).all()


def test_the_same_seed_draws_the_same_samples_in_any_order():
    first, again = glyphs(5, 4, 2, seed=3), glyphs(5, 4, 2, seed=3)
    backwards = pixels(again.train, reversed(range(20)))[::-1]
    np.testing.assert_array_equal(pixels(first.train), backwards)
    np.testing.assert_array_equal(pixels(first.train), backwards, "and when they are loaded again")


def test_a_sample_depends_on_neither_the_number_of_classes_nor_of_samples():
    few, many = glyphs(3, per_class_train=2), glyphs(30, per_class_train=9)
    np.testing.assert_array_equal(pixels(few.train, [4, 5]), pixels(many.train, [18, 19]))


def test_seed_split_and_index_change_the_sample():
    source, other = glyphs(2, 2, 2, seed=0), glyphs(2, 2, 2, seed=1)
    images = [source.train.load(0), source.train.load(1), source.test.load(0), other.train.load(0)]
    assert len({image.tobytes() for image in images}) == 4


def test_no_global_randomness_is_used_or_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    glyphs(2).train.load(0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("classes", [-1, 0, 1, len(STREAM) + 1])
def test_a_wrong_number_of_classes_names_the_range(classes):
    with pytest.raises(InputError, match=f"between 2 and {len(STREAM)}, got {classes}"):
        glyphs(classes)


@pytest.mark.parametrize("wrong", [{"per_class_train": 0}, {"per_class_test": 0}, {"seed": -1}])
def test_other_numbers_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        glyphs(2, **wrong)


def test_an_index_outside_the_split():
    with pytest.raises(IndexError):
        glyphs(2, 1, 1).train.load(2)


def nearest_class_mean(backbone, images, labels):
    """Accuracy on the second half of the images, with class means of the first half."""
    with torch.inference_mode():
        features = F.normalize(backbone(images), dim=1)
    half = len(labels) // 2
    means = torch.stack([features[:half][labels[:half] == c].mean(0) for c in labels.unique()])
    scores = features[half:] @ F.normalize(means, dim=1).T
    return float((scores.argmax(1) == labels[half:]).float().mean())


def test_the_bundled_weights_know_digits_that_they_never_saw():
    grey, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    rows = np.random.default_rng(0).permutation(len(targets))[:600]
    small = torch.from_numpy(grey[rows]).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(small, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.from_numpy(targets[rows])
    torch.manual_seed(0)
    untrained = embedded_backbone().eval()
    torch.nn.init.normal_(untrained.pos_embed, std=0.02)
    trained = nearest_class_mean(load_backbone(), images, labels)
    assert trained > 0.85
    assert trained > nearest_class_mean(untrained, images, labels) + 0.1
