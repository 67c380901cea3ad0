"""StructuralDecoder against the paper's recursion in plain torch."""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf


def _recursion(decoder, z, variable_of):
    """S_i = ConvBlock^n(StrTfm_i(S_{i-1}, U_i)) with one plain MLP and one affine per transform."""
    mlps = decoder.transforms.to_mlps()
    x = decoder.base.expand(z.shape[0], -1, -1, -1)
    for index in range(len(decoder.blocks) + decoder.final_upsample):
        if index in decoder.places:
            number = decoder.places.index(index)
            logits, shift = mlps[number](variable_of(z, number)).chunk(2, dim=1)
            x = torch.exp(logits)[:, :, None, None] * x + shift[:, :, None, None]
        if index < len(decoder.blocks):
            x = decoder.blocks[index].to_torch()(x)
    if decoder.final_upsample:
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
    return F.conv2d(x, decoder.output.weight, decoder.output.bias, padding=1)


@pytest.mark.parametrize(
    ("transforms", "final_upsample", "shared", "places"),
    [
        (4, False, False, (0, 1, 2, 3)),
        (2, False, False, (0, 2)),
        (3, False, False, (0, 1, 2)),
        (5, True, False, (0, 1, 2, 3, 4)),
        (4, False, True, (0, 1, 2, 3)),
    ],
)
def test_values_and_gradients_match_the_recursion(transforms, final_upsample, shared, places):
    torch.manual_seed(0)
    dims = 2 * transforms
    decoder = sf.nn.StructuralDecoder(
        dims,
        3,
        transforms=transforms,
        width=8,
        blocks=4,
        upsample=(1, 3),
        final_upsample=final_upsample,
        shared=shared,
        base_size=2,
        hidden=(8, 8),
        num_groups=2,
    ).double()
    assert decoder.places == places
    z = torch.randn(3, dims, dtype=torch.float64, requires_grad=True)
    logits = decoder(z)
    expected = _recursion(decoder, z, lambda z, i: z if shared else z[:, 2 * i : 2 * i + 2])
    assert logits.shape == (3, 3, 16, 16) if final_upsample else (3, 3, 8, 8)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(logits)
    found = torch.autograd.grad(logits, (z, decoder.base), upstream)
    wanted = torch.autograd.grad(expected, (z, decoder.base), upstream)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_the_first_group_enters_deepest():
    decoder = sf.nn.StructuralDecoder(6, transforms=3, width=8, blocks=3, upsample=(), hidden=(4,))
    assert decoder.latent_groups == [[0, 1], [2, 3], [4, 5]]
    seen = []
    for block in decoder.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    z = torch.zeros(1, 6)
    for dim in (None, 0, 5):
        changed = z.clone()
        if dim is not None:
            changed[0, dim] = 3.0
        decoder(changed)
    plain, deepest, shallowest = seen[0:3], seen[3:6], seen[6:9]
    assert not torch.equal(plain[0], deepest[0])
    assert torch.equal(plain[1], shallowest[1]) and not torch.equal(plain[2], shallowest[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": 13}, "transforms must be at most 12"),
        ({"transforms": 5}, "transforms must divide latent_dim = 12, got 5"),
        ({"upsample": (12,)}, r"upsample must hold block indices in 0..11, got \[12\]"),
        ({"width": 0}, "width must be >= 1, got 0"),
    ],
)
def test_bad_options_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        sf.nn.StructuralDecoder(12, **options)


def test_a_code_of_the_wrong_width():
    decoder = sf.nn.StructuralDecoder(2, transforms=2, width=8, blocks=2, upsample=())
    with pytest.raises(ValueError, match=r"z must have shape \(N, 2\), got \(1, 3\)"):
        decoder(torch.zeros(1, 3))
