"""Training data: batches, orders, augmentations, and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from absdom.errors import PropertyError, UsageError
from absdom.train.data import CropFlip, TrainingData, generator_of, read_training


def numbered(count: int, batch: int, **more) -> TrainingData:
    return TrainingData(torch.arange(float(count))[:, None], torch.arange(count), batch, **more)


def test_an_epoch_has_every_item_once_in_batches_of_nearly_equal_size():
    data = numbered(23, 5)
    batches = list(data.epoch(0))
    assert len(batches) == data.batches == 5
    assert {len(b.x) for b in batches} <= {4, 5}
    assert sorted(torch.cat([b.y for b in batches]).tolist()) == list(range(23))
    assert all(torch.equal(b.x[:, 0].long(), b.y) for b in batches)
    assert [len(b.x) for b in batches] == [data.size(k) for k in range(5)]
    assert data.in_batches(2.5) == 12


def test_the_order_is_that_of_seed_and_epoch_and_of_nothing_else():
    def order(epoch: int, seed: int) -> list[int]:
        return torch.cat([b.y for b in numbered(50, 8).epoch(epoch, seed)]).tolist()

    first = order(3, 7)
    state = torch.get_rng_state()
    torch.rand(5)
    drawn = torch.get_rng_state()
    assert order(3, 7) == first and torch.equal(torch.get_rng_state(), drawn) and not torch.equal(drawn, state)
    assert order(4, 7) != first != order(3, 8)
    with pytest.raises(UsageError, match="seed -1"):
        next(numbered(5, 5).epoch(0, -1))


def test_processes_share_each_batch():
    x = torch.randint(0, 256, (22, 1, 6, 6), dtype=torch.uint8)
    data = TrainingData(x, torch.arange(22), 8, augment=CropFlip(2))
    whole = list(data.epoch(1, 5))
    parts = [list(data.epoch(1, 5, rank, 3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(torch.cat([s.y for s in shares]).tolist()) == sorted(batch.y.tolist())
        assert all(torch.equal(s.x, batch.x[rank::3]) for rank, s in enumerate(shares))
    with pytest.raises(UsageError, match="cannot be shared by 3"):
        list(numbered(4, 2).epoch(0, 0, 2, 3))
    seen = torch.cat([b.y for rank in range(3) for b in data.parts(rank, 3)])
    assert sorted(seen.tolist()) == list(range(22))


def test_pixels_stay_bytes_until_a_batch_is_made():
    data = TrainingData(torch.arange(256, dtype=torch.uint8)[:, None], torch.zeros(256), 256)
    assert data.x.dtype == torch.uint8 and data.range() == (0.0, 1.0)
    (batch,) = data.epoch(0)
    assert batch.x.dtype == torch.float32
    assert torch.equal(batch.x[:, 0].sort().values, torch.arange(256, dtype=torch.float32) / 255)
    wide = TrainingData(torch.rand(4, 2, dtype=torch.float64), torch.zeros(4), 4)
    assert next(wide.epoch(0)).x.dtype == torch.float64


def test_crops_and_flips_are_those_of_single_images():
    augment = CropFlip(2)
    x = torch.randint(0, 256, (40, 3, 5, 7), dtype=torch.uint8)
    drawn = augment.draw(40, generator_of(0))
    assert drawn[:, :2].min() == 0 and drawn[:, :2].max() == 4 and set(drawn[:, 2].tolist()) == {0, 1}
    changed = augment(x, drawn)
    assert changed.dtype == torch.uint8 and changed.shape == x.shape
    for image, (row, column, flip), found in zip(x, drawn.tolist(), changed):
        wide = torch.zeros(3, 9, 11, dtype=torch.uint8)
        wide[:, 2:-2, 2:-2] = image
        crop = wide[:, row : row + 5, column : column + 7]
        assert torch.equal(found, crop.flip(2) if flip else crop)
    still = CropFlip(0, flip=False)
    assert torch.equal(still(x, still.draw(40, generator_of(0))), x)
    with pytest.raises(UsageError, match="images"):
        augment(torch.zeros(2, 9), drawn[:2])


def test_held_out_items_are_no_training_items():
    data = TrainingData(torch.rand(30, 1, 4, 4), torch.arange(30), 7, augment=CropFlip(1))
    train, held = data.held_out(10, seed=3)
    assert len(train) == 20 and len(held) == 10 and held.augment is None and train.augment == data.augment
    assert sorted(train.y.tolist() + held.y.tolist()) == list(range(30))
    assert torch.equal(held.x, data.x[held.y])
    assert torch.equal(data.held_out(10, seed=3)[1].y, held.y) and not torch.equal(data.held_out(10)[1].y, held.y)
    for count in (0, 30):
        with pytest.raises(UsageError, match="held out"):
            data.held_out(count)


def test_fingerprints_tell_data_apart():
    data = numbered(5, 2)
    assert data.fingerprint() == numbered(5, 2).fingerprint()
    other = numbered(5, 2)
    other.y[1] = 4
    assert data.fingerprint()["sha256"] != other.fingerprint()["sha256"]


@pytest.mark.parametrize(
    "x, y, error, text",
    [
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3), PropertyError, "uint8"),
        (torch.zeros(3, 2, dtype=torch.float16), torch.zeros(3), UsageError, "half precision"),
        (torch.zeros(3), torch.zeros(3), PropertyError, "first axis"),
        (torch.zeros(3, 2), torch.zeros(2), PropertyError, "3 items in x, 2 in y"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(2), PropertyError, "infinity in item 1"),
    ],
)
def test_what_is_no_data_is_refused(x, y, error, text):
    with pytest.raises(error, match=text):
        TrainingData(x, y, 2)


def saved(folder, **arrays) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_reading_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 5)).astype(np.uint8)
    y = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    path = saved(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2, None])
    data = read_training(path, 4, shape=(1, 4, 5), outputs=3)
    assert data.x.shape == (6, 1, 4, 5) and data.x.dtype == torch.uint8 and data.y.dtype == torch.int64
    assert np.array_equal(data.x[:, 0].numpy(), x) and data.y.tolist() == y.tolist()
    assert read_training(path, 4).x.shape == (6, 4, 5)
    flat = read_training(path, 4, shape=(20,), part="test")
    assert np.array_equal(flat.x.numpy(), x[:2].reshape(2, 20)) and flat.y.tolist() == [0, 1]
    path = saved(tmp_path, x=np.zeros((3, 4, 5, 3)), y=[0.0, 1.0, 1.0])
    assert read_training(path, 4, shape=(3, 4, 5)).x.shape == (3, 3, 4, 5)
    assert read_training(path, 4).x.dtype == torch.float32


@pytest.mark.parametrize(
    "arrays, text",
    [
        ({"x": [[0.0]]}, "neither 'y_train' nor 'y', only 'x'"),
        ({"x": [[0.0]], "x_train": [[0.0]], "y": [0]}, "both 'x_train' and 'x'"),
        ({"x": [[0]], "y": [0]}, "'x' is of type int64"),
        ({"x": [[0.0, 1.0]], "y": [0]}, r"items of the shape \[2\]; the network takes \[3\]"),
        ({"x": [[0.0] * 3] * 2, "y": [0]}, "one whole number for each of 2 items"),
        ({"x": [[0.0] * 3] * 2, "y": [0, 2]}, "label 2 in item 1: labels are whole numbers from 0 to 1"),
        ({"x": [[0.0] * 3] * 2, "y": [0, 0.5]}, "label 0.5 in item 1"),
        ({"x": [[0.0] * 3, [1.0, np.inf, 0.0]], "y": [0, 0]}, "infinity in item 1"),
    ],
)
def test_files_that_do_not_fit(tmp_path, arrays, text):
    path = saved(tmp_path, **arrays)
    with pytest.raises(PropertyError, match=text) as caught:
        read_training(path, 4, shape=(3,), outputs=2)
    assert str(caught.value).startswith(path)
