"""The lookup of frozen features."""

import pytest
import torch

from ostinato.backbones.cache import KEY_BYTES, PLAIN, FeatureCache, FeatureFile, StateCache, keys_of, linear_keys
from ostinato.contract.tiny_models import random_backbone, random_clip_backbone
from ostinato.errors import InputError


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

    def contents(self, x):
        return list(x.contiguous().numpy())


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
    assert cache._kept._bytes == 3 * 16, "counted once"
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
def test_memory_is_bounded(entries):
    row = 4 * 4 + 200
    backbone, cache, x = Counting(), FeatureCache(max_bytes=entries * row), images(8)
    for i in range(8):
        cache.features(backbone, x[i : i + 1])
        assert len(cache) <= entries
        assert cache._kept._bytes == 16 * len(cache)
    assert len(cache) == entries
    cache.features(backbone, x[7:])
    assert backbone.images == 8, "the newest is remembered"


def test_passes_over_more_images_than_fit_still_find_some():
    """Which they would not if the oldest were dropped: it is always the next to be asked for."""
    backbone, cache, x = Counting(), FeatureCache(max_bytes=20 * 216), images(40)
    for _ in range(6):
        for i in range(0, 40, 4):
            cache.features(backbone, x[i : i + 4])
    assert len(cache) == 20
    assert backbone.images < 40 + 5 * 36


def test_features_under_edits_are_kept_by_the_edits_and_on_disk_without_them(tmp_path):
    backbone, x, cache = Counting(), images(4), FeatureCache()
    cache.persist(tmp_path)
    asked = []

    def compute(new):
        asked.append(len(new))
        return [backbone(new), 2 * backbone(new)]

    plain = Counting()(x)
    backbone.state_dict, backbone.settings, backbone.dim = dict, tuple, 4
    backbone.dtype, backbone.parameters = torch.float32, lambda: iter([x])
    cache.features(backbone, x[:1])
    for _ in range(2):
        rows = cache.under(backbone, x, [PLAIN, b"a"], compute)
        assert torch.equal(rows[0], plain)
        assert torch.equal(rows[1], 2 * plain)
    assert asked == [4]
    other = cache.under(backbone, x[:2], [b"b"], lambda new: [3 * backbone(new)])
    assert torch.equal(other[0], 3 * plain[:2])
    assert len(cache._file) == 4


def test_states_of_all_layers_share_one_budget():
    backbone, x = random_backbone(depth=3), images(4)
    size = backbone.embed(x).h[0].nbytes + 200
    cache = StateCache(3 * size)
    for layer in (1, 2):
        for _ in range(2):
            torch.testing.assert_close(
                cache.states(backbone, x, layer).h, backbone.run(backbone.embed(x), stop=layer).h
            )
    assert len(cache._rows) == 3


def test_a_state_is_right_while_others_take_its_memory():
    """Of a batch with known and unknown images, and the same one twice, under a budget of two states."""
    backbone, x = random_backbone(depth=3), images(6)
    cache = StateCache(2 * (backbone.embed(x).h[0].nbytes + 200))
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        some = x[torch.randint(0, 6, (4,), generator=draw)]
        torch.testing.assert_close(cache.states(backbone, some, 1).h, backbone.run(backbone.embed(some), stop=1).h)
    assert len(cache._rows) == 2
    used = [row.data_ptr() for row in cache._rows._rows.values()]
    free = [row.data_ptr() for rows in cache._rows._slots._free.values() for row in rows]
    assert len({*used, *free}) == len(used) + len(free), "no slot twice"


def test_a_file_of_features_has_every_image_once_however_little_memory_there_is(tmp_path):
    backbone, x = random_backbone(depth=2), images(9)
    want = backbone(x)
    cache = FeatureCache(max_bytes=2 * (4 * backbone.dim + 200))
    cache.persist(tmp_path)
    for _ in range(3):
        torch.testing.assert_close(cache.features(backbone, x), want)
    other = FeatureCache(max_bytes=1000)
    other.persist(tmp_path)
    more = images(4, seed=5)
    other.features(backbone, more)  # another run writes in between
    torch.testing.assert_close(cache.features(backbone, torch.cat([x, more])), backbone(torch.cat([x, more])))
    assert stored(tmp_path).stat().st_size == (9 + 4 + 4) * (16 + 4 + 4 * backbone.dim), "each run its own"


def test_a_batch_larger_than_the_memory_is_still_right():
    backbone, cache, x = Counting(), FeatureCache(max_bytes=2 * 216), images(6)
    cache.features(backbone, x[:2])
    assert torch.equal(cache.features(backbone, x), Counting()(x))
    assert len(cache) == 2
    assert torch.equal(cache.features(backbone, x.flip(0)), Counting()(x.flip(0)))


def test_a_remembered_row_does_not_keep_its_whole_batch_alive():
    """A view of the batch would, and the bound on memory would mean nothing."""
    cache, batches = FeatureCache(), []
    for seed in range(3):
        cache.under(Counting(), images(4, seed), [PLAIN], lambda x: [batches.append(Counting()(x)) or batches[-1]])
    kept = {row.untyped_storage().data_ptr() for row in cache._kept._rows.values()}
    assert len(kept) == 1, "all rows stand in one block"
    assert not kept & {batch.untyped_storage().data_ptr() for batch in batches}


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


# On disk


def stored(tmp_path):
    (path,) = tmp_path.glob("*.features")
    return path


@pytest.mark.parametrize("make", [lambda: random_backbone(depth=2), random_clip_backbone], ids=["image", "clip"])
def test_a_second_cache_finds_what_the_first_one_wrote(make, tmp_path, monkeypatch):
    backbone, x = make(), images(7)
    first = FeatureCache()
    first.persist(tmp_path)
    want = first.features(backbone, x)
    assert torch.equal(want, backbone(x))
    second = FeatureCache()
    second.persist(tmp_path)
    monkeypatch.setattr(type(backbone), "forward", lambda *_: pytest.fail("computed again"))
    assert torch.equal(second.features(backbone, x.flip(0)), want.flip(0))


def test_other_weights_precision_or_normalisation_never_share_a_file(tmp_path):
    from ostinato.backbones.vision import Preprocess

    x = images(2)
    base, other, low, unit = (random_backbone(depth=2, seed=s) for s in (0, 1, 0, 0))
    low.cast(torch.bfloat16)
    unit.preprocess = Preprocess(8, (0.0,) * 3, (1.0,) * 3)
    for backbone in (base, other, low, unit):
        cache = FeatureCache()
        cache.persist(tmp_path)
        torch.testing.assert_close(cache.features(backbone, x), backbone(x))
    assert len(list(tmp_path.glob("*.features"))) == 4


@pytest.mark.parametrize("left", [1, 30, 83])
def test_a_record_cut_short_is_computed_again_and_shifts_nothing(tmp_path, left):
    backbone, x = random_backbone(depth=2), images(5)
    cache = FeatureCache()
    cache.persist(tmp_path)
    want = cache.features(backbone, x[:3])
    path = stored(tmp_path)
    size = path.stat().st_size // 3
    assert size == 16 + 4 + 4 * backbone.dim
    path.write_bytes(path.read_bytes()[: 2 * size + left])
    for rows, known in ((x[:3], 2), (x, 3), (x, 5)):
        assert len(FeatureFile(path, backbone.dim)) == known
        again = FeatureCache()
        again.persist(tmp_path)
        torch.testing.assert_close(again.features(backbone, rows)[:3], want)


def test_a_record_that_was_damaged_is_never_used(tmp_path):
    backbone, x = random_backbone(depth=2), images(3)
    cache = FeatureCache()
    cache.persist(tmp_path)
    want = cache.features(backbone, x)
    path = stored(tmp_path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 0xFF
    path.write_bytes(bytes(data))
    again = FeatureCache()
    again.persist(tmp_path)
    torch.testing.assert_close(again.features(backbone, x), want)


def test_passing_images_are_not_written_and_do_not_drive_out_the_others(tmp_path):
    backbone, kept = Counting(), images(4)
    cache = FeatureCache(max_bytes=16_000)
    cache.features(backbone, kept)
    for seed in range(20):
        cache.features(backbone, images(8, seed=seed + 1), passing=True)
    calls = backbone.calls
    cache.features(backbone, kept)
    assert backbone.calls == calls
    real, disk = random_backbone(depth=2), FeatureCache()
    disk.persist(tmp_path)
    disk.features(real, kept, passing=True)
    assert stored(tmp_path).stat().st_size == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    from ostinato.errors import DataError

    (tmp_path / "file").write_text("x")
    cache = FeatureCache()
    cache.persist(tmp_path / "file")
    with pytest.raises(DataError, match="give another folder"):
        cache.features(random_backbone(depth=2), images(1))


# States


def test_states_are_those_of_the_plain_backbone_and_computed_once(monkeypatch):
    backbone, cache, x = random_backbone(depth=4), StateCache(2**20), images(5)
    want = backbone.run(backbone.embed(x), stop=3).h
    with torch.inference_mode():
        torch.testing.assert_close(cache.states(backbone, x[:3], 3).h, want[:3])
    torch.testing.assert_close(cache.states(backbone, x, 3).h, want)
    torch.testing.assert_close(cache.states(backbone, x, 2).h, backbone.run(backbone.embed(x), stop=2).h)
    monkeypatch.setattr(type(backbone), "run", lambda *_, **__: pytest.fail("computed again"))
    got = cache.states(backbone, x.flip(0), 3).h
    torch.testing.assert_close(got, want.flip(0))
    assert not got.is_inference(), "training may use what an evaluation left"


def test_training_from_looked_up_states_is_the_same_run():
    from ostinato.contract.harness import inputs_of, learn, make, scores
    from ostinato.contract.tiny_models import tiny_stream

    stream = tiny_stream()
    for base in ("none", {"name": "dualprompt", "g_layers": ()}):
        plain, fast = make("soft_tf", base=base), make("soft_tf", base=base)
        fast.frozen.state_cache = StateCache(2**22)
        assert fast.plain_below
        x = inputs_of(stream)
        a, b = scores(learn(plain, stream), x), scores(learn(fast, stream), x)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert {key[-2:] for key in fast.frozen.state_cache._rows._rows} == {min(fast.layers).to_bytes(2)}
    assert not make("soft_tf").plain_below, "general prefixes below the masks move"


@pytest.mark.parametrize("folder", ["a\0b", "~nosuchuser/cache", "\ud800"])
def test_a_folder_that_can_be_none_is_refused(folder):
    with pytest.raises(InputError, match="cache must be a path"):
        FeatureCache().persist(folder)


def test_linear_keys_tell_images_apart_and_do_not_depend_on_the_batch():
    x = images(70)
    x[69] = x[3]
    keys = linear_keys(x)
    assert keys[69] == keys[3]
    assert len(set(keys)) == 69
    assert [linear_keys(row[None])[0] for row in x[:5]] == keys[:5]
    near = x[:1].repeat(4, 1, 1, 1)
    near[1, 0, 0, 0] += 1
    near[2, 0, 0, 0] += 128
    near[3, 0, 0, :2] = near[0, 0, 0, :2].flip(0)
    assert len(set(linear_keys(near))) == 4


def test_stored_keys_are_hashes_of_the_pixels():
    backbone, x = Counting(), images(2)
    assert keys_of(backbone, x, stored=True) == keys_of(backbone, x)
    assert all(len(key) == KEY_BYTES for key in keys_of(backbone, x))
