"""Braco and LLaMA-VID against straight-line definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtc import InputError
from vtc.compressors import build
from vtc.compressors.base import Features
from vtc.compressors.zoo.braco import PARTS, energy, sparsemax
from vtc.compressors.zoo.controls import areas


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    """No point of a fine grid over the simplex is nearer."""
    torch.manual_seed(0)
    steps = torch.linspace(0, 1, 101)
    a, b = torch.meshgrid(steps, steps, indexing="ij")
    grid = torch.stack([a, b, 1 - a - b], -1).flatten(0, 1)
    grid = grid[(grid >= -1e-6).all(-1)]
    for scores in torch.randn(20, 3) * 2:
        found = sparsemax(scores)
        assert found.sum() == pytest.approx(1, abs=1e-6) and (found >= 0).all()
        best = (grid - scores).square().sum(-1).min()
        assert (found - scores).square().sum() <= best + 1e-6
    assert (sparsemax(torch.tensor([3.0, 0.0, 0.0])) == torch.tensor([1.0, 0.0, 0.0])).all()


def test_energy_is_the_squared_difference_to_the_neighbours():
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    image = x.view(3, 3, 4)
    wanted = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= i + di < 3 and 0 <= j + dj < 3:
                    wanted[i, j] += (image[i, j] - image[i + di, j + dj]).square().sum()
    wanted = (wanted - wanted.mean()) / (wanted.std() + 1e-6)
    assert torch.allclose(energy(x, 3)[0], wanted.flatten(), atol=1e-5)


def test_one_token_of_braco_is_the_mean_of_the_patches_scaled():
    braco = build("braco", tokens=1, grid=4, d=8)
    x = torch.randn(2, 16, 8)
    told = braco.polar_scale * braco.polar_projection(braco.code[0])
    assert torch.allclose(
        braco(Features(x))[:, 0], x.mean(1) * 4 + told, atol=1e-5
    )  # 4 = sqrt(16), orthonormal
    assert build("braco", tokens=16, grid=12, d=8).residuals == PARTS[16][1]
    with pytest.raises(InputError, match="V = 2"):
        build("braco", tokens=2, grid=4, d=8)


def test_the_features_get_gradients_from_residual_tokens_alone():
    x = torch.randn(1, 16, 8, requires_grad=True)
    tokens = build("braco", tokens=4, grid=4, d=8)(Features(x))
    low = torch.autograd.grad(tokens[:, 0].sum(), x, retain_graph=True, allow_unused=True)[0]
    assert low is None or not low.any()
    assert torch.autograd.grad(tokens[:, 1:].square().sum(), x)[0].abs().sum() > 0


def llamavid(V, grid=6):
    torch.manual_seed(0)
    return build("llamavid", tokens=V, grid=grid, d=16, d_llm=24, d_question=24).eval()


def test_braco_attention_map_adds_up():
    for V in (1, 4, 25):
        seen = build("braco", tokens=V, grid=6, d=8).attention_map(Features(torch.randn(2, 36, 8)))
        assert seen.shape == (2, V, 36) and torch.allclose(seen.sum(-1), torch.ones(2, V), atol=1e-5)


def test_llamavid_against_loops():
    made, x, words = llamavid(7), torch.randn(2, 36, 16), torch.randn(2, 5, 24)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    tokens = made(Features(x), words, mask=mask)
    assert tokens.shape == (2, 7, 24)
    for b in range(2):
        real = words[b, mask[b]]
        read = made.text(made.embed(real)[None])[0]
        context = torch.zeros(16)
        for word in read:
            weight = (made.key(x[b]) @ word / 4.0).softmax(0)  # sqrt(16)
            context += (weight[:, None] * x[b]).sum(0) / len(read)
        assert torch.allclose(tokens[b, 0], made.context(context), atol=1e-5)
        picture = x[b].view(6, 6, 16)
        for i in range(2):  # six content tokens: two rows of three
            for j in range(3):
                mean = picture[3 * i : 3 * i + 3, 2 * j : 2 * j + 2].mean((0, 1))
                assert torch.allclose(tokens[b, 1 + 3 * i + j], made.content(mean), atol=1e-5)


def test_llamavid_gives_every_question_its_own_context():
    made, x, words = llamavid(4), torch.randn(2, 36, 16), torch.randn(2, 3, 5, 24)
    packed = made(Features(x), words)
    assert packed.shape == (6, 4, 24)
    for m in range(3):
        alone = made(Features(x), words[:, m])
        assert torch.allclose(packed.view(2, 3, 4, 24)[:, m], alone, atol=1e-5)
    assert torch.allclose(packed.view(2, 3, 4, 24)[:, 0, 1:], packed.view(2, 3, 4, 24)[:, 2, 1:])
    assert torch.allclose(
        made.at(1)(Features(x), words[:, 0])[:, 0], packed.view(2, 3, 4, 24)[:, 0, 0], atol=1e-5
    )


def test_llamavid_attention_map_adds_up():
    for V in (1, 4, 17):
        seen = llamavid(V).attention_map(Features(torch.randn(2, 36, 16)), torch.randn(2, 5, 24))
        assert seen.shape == (2, V, 36) and torch.allclose(seen.sum(-1), torch.ones(2, V), atol=1e-5)


def test_areas_share_patches_out():
    for n, g in ((1, 6), (2, 6), (4, 6), (5, 12)):
        share = areas(n, g).numpy()
        assert np.allclose(share.sum(1), 1) and np.allclose(share.sum(0), n / g)
