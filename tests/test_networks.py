"""The small networks: shapes, and parameters counted by hand from what they are said to be."""

from __future__ import annotations

import pytest
import torch

from featcache.errors import OptionError
from featcache.networks import catalogue


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_small_cnn_has_the_parameters_that_its_words_say() -> None:
    """3×3 convolutions 1 → 4 → 8 with batch norm; 392-128-64-32-10."""
    convolutions = (1 * 4 * 9 + 4) + 2 * 4 + (4 * 8 * 9 + 8) + 2 * 8
    linear = (392 * 128 + 128) + (128 * 64 + 64) + (64 * 32 + 32) + (32 * 10 + 10)
    network = catalogue.build("small-cnn", 10, 1, 28, seed=0)
    assert _count(network) == convolutions + linear == 61_330
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)] == [0.5, 0.25]


def test_the_simple_resnet_has_the_parameters_that_its_words_say() -> None:
    """A convolution a → b with batch norm: 9ab + b + 2b. Five, four pairs, a linear layer 512 → 100."""
    blocks = 960 + 18_624 + 74_112 + 295_680 + 1_181_184
    residual = 18_624 + 74_112 + 295_680 + 1_181_184
    network = catalogue.build("simple-resnet", 100, 3, 128, seed=0)
    assert _count(network) == blocks + residual + 51_300 == 3_191_460


def test_the_inception_resnet_has_the_parameters_that_its_words_say() -> None:
    """Of a → b with q = b/4, e = b/8: 2ae + 34eq + 2aq of products, 3 for each of 2e + 4q channels."""
    inception = 6_128 + 24_032 + 95_168 + 378_752
    residual = 18_624 + 74_112 + 295_680 + 1_181_184
    last = 9 * 512 * 512 + 3 * 512
    network = catalogue.build("inception-resnet", 100, 3, 128, seed=0)
    assert _count(network) == 960 + inception + residual + last + 51_300 == 4_486_772


@pytest.mark.parametrize(
    ("name", "channels", "size", "columns"),
    [
        ("small-cnn", 1, 28, 392),
        ("small-cnn", 3, 8, 32),
        ("simple-resnet", 3, 128, 512),
        ("inception-resnet", 1, 128, 512),
        ("simple-resnet", 3, 256, 2048),
    ],
)
def test_shapes(name: str, channels: int, size: int, columns: int) -> None:
    network = catalogue.build(name, 7, channels, size, seed=0).eval()
    with torch.inference_mode():
        rows = network.body(torch.zeros(2, channels, size, size))  # type: ignore[operator]
        assert rows.shape == (2, columns)
        assert network.head(rows).shape == (2, 7)  # type: ignore[operator]


def test_the_seed_alone_decides_and_nothing_else_is_drawn() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (catalogue.build("small-cnn", 3, 1, 28, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])


def test_wrong_names_and_sizes_get_a_sentence() -> None:
    with pytest.raises(OptionError, match="Unknown network 'resnet'"):
        catalogue.input_of("resnet")
    with pytest.raises(OptionError, match="simple-resnet takes images of at least 128 pixels a side, got 64"):
        catalogue.build("simple-resnet", 10, 3, 64, seed=0)
