import numpy as np
import pytest

from keras_distill.demo import data

DIGITS = data.load()


def _distinct(images):
    return {image.tobytes() for image in images}


def test_load_gives_the_whole_set_scaled():
    assert DIGITS.images.shape == (1797, 8, 8, 1)
    assert DIGITS.images.dtype == np.float32
    assert (DIGITS.images.min(), DIGITS.images.max()) == (0.0, 1.0)
    assert set(DIGITS.labels) == set(range(data.CLASSES))


@pytest.mark.parametrize("seed", [0, 7])
def test_split_is_disjoint_and_loses_nothing(seed):
    assert len(_distinct(DIGITS.images)) == 1797  # so that bytes tell images apart
    split = data.split(DIGITS, seed)
    parts = [split.labelled.images, split.unlabelled, split.test.images]
    assert [len(part) for part in parts] == [data.LABELLED, 1100, data.TEST]
    assert _distinct(np.concatenate(parts)) == _distinct(DIGITS.images)


def test_split_is_stratified():
    split = data.split(DIGITS, seed=3)
    whole = np.bincount(DIGITS.labels) / len(DIGITS.labels)
    for part in (split.labelled, split.test):
        counts = np.bincount(part.labels, minlength=data.CLASSES)
        assert np.abs(counts - whole * len(part.labels)).max() <= 1.0


def test_labels_stay_with_their_images():
    label_of = {
        image.tobytes(): label
        for image, label in zip(DIGITS.images, DIGITS.labels, strict=True)
    }
    split = data.split(DIGITS, seed=1)
    for part in (split.labelled, split.test):
        assert [label_of[image.tobytes()] for image in part.images] == list(part.labels)


def test_split_depends_on_the_seed_alone():
    first, again, other = (data.split(DIGITS, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    np.testing.assert_array_equal(first.labelled.labels, again.labelled.labels)
    assert _distinct(first.test.images) != _distinct(other.test.images)


def test_transfer_images_are_all_but_the_test_images():
    split = data.split(DIGITS, seed=0)
    assert len(split.transfer) == 1200
    assert not _distinct(split.transfer) & _distinct(split.test.images)


def test_views_are_distorted_repeatable_and_keep_their_labels():
    labels = np.arange(10, dtype="int32")
    images = np.broadcast_to(labels.reshape(-1, 1, 1, 1) / 10, (10, 8, 8, 1))
    first, again = (
        next(iter(data.views(images.astype("float32"), labels, seed=5)))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    seen, brightness = first[0].numpy(), first[1].numpy() / 10
    assert seen.shape == (data.BATCH_SIZE, 8, 8, 1)
    # the centre of a flat image is as bright as the image was, its corner isn't
    np.testing.assert_allclose(seen[:, 4, 4, 0], brightness, atol=1e-6)
    assert np.abs(seen[:, 0, 0, 0] - brightness).max() > 0.1


def test_views_without_labels_hold_images_alone():
    batch = next(iter(data.views(DIGITS.images[:20], seed=0)))
    assert len(batch) == 1
