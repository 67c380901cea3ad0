"""Reconstructions, hybrid samples and traversals of a model whose pictures are known."""

import numpy as np
import pytest
import torch

from strucfast.plots import hybrid_samples, reconstructions, traversals, traverse


def square_places(frames):
    """Centre (column, row) in [0, 1] and background red in [0, 1] of frames (..., H, W, 3)."""
    white = frames[..., 2] > 127
    size = frames.shape[-2]
    places = (np.arange(size) + 0.5) / size
    weight = white.sum((-1, -2))
    column = (white.sum(-2) * places).sum(-1) / weight
    row = (white.sum(-1) * places).sum(-1) / weight
    return column, row, frames[..., 0, 0, 0] / 255


def test_a_traversal_sweeps_the_named_latent_and_no_other(model, codes):
    base = torch.tensor([0.5, 0.4, 0.3, 0.6])
    result = traverse(model, codes, dims=[1, 2], steps=5, base=base)
    assert result.dims == (1, 2) and result.frames.shape == (2, 5, 32, 32, 3)
    column, row, red = square_places(result.frames)
    np.testing.assert_allclose(result.values[:, 0], codes.amin(0)[[1, 2]], rtol=1e-6)
    np.testing.assert_allclose(result.values[:, -1], codes.amax(0)[[1, 2]], rtol=1e-6)
    np.testing.assert_allclose(np.diff(result.values, 2), 0, atol=1e-6)
    np.testing.assert_allclose(row[0], result.values[0], atol=1 / 32)
    np.testing.assert_allclose(red[1], result.values[1], atol=1 / 255)
    np.testing.assert_allclose(column, 0.5, atol=1 / 32)
    np.testing.assert_allclose(red[0], 0.3, atol=1 / 255)
    np.testing.assert_allclose(row[1], 0.4, atol=1 / 32)


def test_the_decoder_sees_all_other_latents_held(model, codes):
    result = traverse(model, codes, steps=3)
    seen = torch.cat(model.batches).view(4, 3, 4)
    for row in range(4):
        others = [dim for dim in range(4) if dim != row]
        assert (seen[row][:, others] == torch.from_numpy(result.base)[others]).all()
        assert torch.equal(seen[row, :, row], torch.from_numpy(result.values[row]))


def test_the_default_base_is_the_stored_code_nearest_to_the_mean(model, codes):
    base = torch.from_numpy(traverse(model, codes, steps=2).base)
    distance = (codes - codes.mean(0)).norm(dim=1)
    assert torch.equal(base, codes[distance.argmin()])


def test_max_rows_keeps_the_latents_that_change_the_picture_in_order(model, codes):
    assert traverse(model, codes, steps=2, max_rows=3).dims == (0, 1, 2)
    assert traverse(model, codes, steps=2, dims=[3, 1], max_rows=1).dims == (1,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": [4]}, "dims"),
        ({"dims": []}, "dims"),
        ({"dims": [-1]}, "dims"),
        ({"steps": 1}, "steps"),
        ({"max_rows": 0}, "max_rows"),
        ({"base": torch.zeros(3)}, "base"),
    ],
)
def test_traverse_names_the_bad_argument(model, codes, options, words):
    with pytest.raises(ValueError, match=f"{words}: expected"):
        traverse(model, codes, **options)


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(0, 4), torch.full((2, 4), torch.nan)])
def test_codes_are_checked(model, bad):
    with pytest.raises(ValueError, match="codes: expected"):
        traverse(model, bad)


def test_traversal_figure_labels_every_row_even_with_dollars(model, codes):
    figure = traversals(model, codes, steps=3, labels=["column", "row", "$red", "no_thing^"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["column", "row", "$red", "no_thing^"]
    figure.canvas.draw()
    with pytest.raises(ValueError, match="labels: expected 4"):
        traversals(model, codes, labels=["one"])


def test_reconstructions_put_the_original_on_the_left(model, dataset):
    images = dataset.images(np.arange(3))
    grid = reconstructions(model, images, columns=1)
    assert grid.shape == (3 * 32 + 2 * 2, 64, 3)
    for row in range(3):
        left, right = grid[row * 34 : row * 34 + 32, :32], grid[row * 34 : row * 34 + 32, 32:]
        assert np.array_equal(left, images[row])
        np.testing.assert_allclose(square_places(right), square_places(left), atol=2 / 32)


def test_hybrid_samples_draw_the_same_for_the_same_generator(model, codes):
    pictures = [
        hybrid_samples(model, codes, 6, columns=3, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    ]
    assert pictures[0].shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 3)
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_hybrid_samples_keep_together_what_is_not_hybridised(model, codes):
    hybrid_samples(model, codes, 50, hybridise=[2], generator=torch.Generator().manual_seed(0))
    drawn = torch.cat(model.batches)
    kept = (drawn[:, None, [0, 1, 3]] == codes[None, :, [0, 1, 3]]).all(-1)
    assert kept.any(1).all()
    assert not (drawn[:, None] == codes[None]).all(-1).any(1).all()


def test_the_training_flag_comes_back(model, codes):
    model.train()
    traverse(model, codes, steps=2)
    assert model.training
