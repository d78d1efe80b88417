"""The extractor: equal to the plain way of doing it, frozen, cut, independent of the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from featcache.backbones import catalogue, graph, weights
from featcache.backbones.devices import device_facts, exact_float32, resolve_device
from featcache.backbones.pooling import pool_rows
from featcache.backbones.preprocess import Normalise
from featcache.backbones.runtime import Extractor
from featcache.errors import BackboneError, OptionError, WeightsError
from featcache.recipe import Node, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 64
STEP = Preprocess("squash", SIZE, SIZE, "bilinear", MEAN, STD)


def network(name: str, seed: int = 0) -> nn.Module:
    return weights.assemble(name, weights.load(name, weights.resolve(name, f"random:{seed}"))[0])


def batch(n: int, size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Coarse random images: photos are not white noise."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)[:, :size, :size])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def plain(net: nn.Module, node: str, images: NDArray[np.uint8]) -> torch.Tensor:
    """The textbook way: the whole network in float32, one image at a time, NCHW."""
    extractor = create_feature_extractor(net, [node], suppress_diff_warning=True).eval()
    x = Normalise(MEAN, STD, "cpu", torch.float32)(images).contiguous()
    with torch.inference_mode():
        return torch.cat([extractor(one[None])[node] for one in x])


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "resnet18",
        "vgg11_bn",
        "densenet121",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "efficientnet_b0",
    ],
)
def test_default_features_are_those_of_the_plain_way(name: str) -> None:
    net = network(name)
    nodes = catalogue.resolve_nodes(name, net)
    images = batch(3)
    wanted = pool_rows(plain(copy.deepcopy(net), nodes[0].name, images), nodes[0].pool).numpy()
    extractor = Extractor(net, nodes, STEP)
    got = extractor(images)[nodes[0].name]
    assert got.dtype == np.float32
    assert extractor.columns == {nodes[0].name: got.shape[1]}
    assert got.std(0).max() > 1e-4, "different images, different features"
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert cosine(got, wanted) >= 0.9999999


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_32", 224), ("swin_t", 64), ("convnext_tiny", 64), ("googlenet", 64)]
)
def test_other_families_too(name: str, size: int) -> None:
    net = network(name)
    nodes = catalogue.resolve_nodes(name, net)
    images = batch(2, size)
    wanted = pool_rows(plain(copy.deepcopy(net), nodes[0].name, images), nodes[0].pool).numpy()
    got = Extractor(net, nodes, Preprocess("squash", size, size, "bilinear", MEAN, STD))(images)[
        nodes[0].name
    ]
    assert cosine(got, wanted) >= 0.999999


def test_several_nodes_in_one_pass_hold_what_was_read_there() -> None:
    """ResNet and DenseNet work in place: what is read before a ReLU must not be changed by it."""
    net = network("resnet18")
    asked = ["bn1", "layer1.0.bn2", "layer2.0.downsample.1", "layer4", "flatten"]
    images = batch(2)
    for pool in ("flatten", "max"):
        nodes = catalogue.resolve_nodes("resnet18", net, asked, pool)
        together = Extractor(net, nodes, STEP)(images)
        assert list(together) == [node.name for node in nodes]
        assert (together["bn1"].min() < 0) == (pool == "flatten")
        for node in nodes:
            alone = Extractor(net, (node,), STEP)(images)[node.name]
            np.testing.assert_allclose(together[node.name], alone, rtol=1e-4, atol=1e-5)


def test_a_map_is_read_before_the_relu_that_overwrites_it() -> None:
    net = network("squeezenet1_1")
    nodes = (Node("features.0", "flatten"), Node("features.1", "flatten"), Node("features.2", "avg"))
    got = Extractor(net, nodes, STEP)(batch(2))
    assert got["features.0"].min() < 0
    assert np.array_equal(np.maximum(got["features.0"], 0), got["features.1"])


def test_channels_last_maps_come_out_channel_by_channel() -> None:
    net = network("swin_t")
    images = batch(2)
    maps = plain(copy.deepcopy(net), "norm", images)  # (B, H, W, C)
    assert maps.shape == (2, 2, 2, 768)
    for pool, wanted in (
        ("avg", maps.mean((1, 2))),
        ("max", maps.amax((1, 2))),
        ("flatten", maps.permute(0, 3, 1, 2).flatten(1)),
        ("avg:1", maps.mean((1, 2))),
    ):
        got = Extractor(net, (Node("norm", pool),), STEP)(images)["norm"]
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_frozen() -> None:
    """No gradients, no moving statistics, no change of the network that was given, in any precision."""
    net = network("resnet18").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for precision in ("fp32", "bf16"):
        extractor = Extractor(net, (Node("flatten", "flatten"),), STEP, precision)
        state = copy.deepcopy(extractor._body.state_dict())
        extractor(batch(4))
        assert not any(module.training for module in extractor._body.modules())
        assert not any(parameter.requires_grad for parameter in extractor._body.parameters())
        assert all(torch.equal(value, state[key]) for key, value in extractor._body.state_dict().items())
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(
        torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before
    )


def test_outputs_are_plain_arrays_of_their_own() -> None:
    extractor = Extractor(network("squeezenet1_1"), (Node("features.2", "flatten"),), STEP)
    images = batch(2)
    first = extractor(images)["features.2"]
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(extractor(images)["features.2"], kept)
    assert torch.is_inference_mode_enabled() is False


def test_nothing_beyond_the_last_node_is_kept_or_computed() -> None:
    net = network("vgg11")
    extractor = Extractor(net, catalogue.resolve_nodes("vgg11", net), STEP)
    kept = sum(parameter.numel() for parameter in extractor._body.parameters())
    assert kept == sum(parameter.numel() for parameter in net.features.parameters())
    assert not any(isinstance(module, nn.Linear) for module in extractor._body.modules())


def test_the_same_row_in_any_batch() -> None:
    net = network("resnet18")
    extractor = Extractor(net, catalogue.resolve_nodes("resnet18", net), STEP)
    images = batch(9)
    whole = extractor(images)["flatten"]
    for size in (1, 2, 4):
        parts = [extractor(images[i : i + size])["flatten"] for i in range(0, 9, size)]
        assert np.abs(np.concatenate(parts) - whole).max() <= 1e-5 * np.abs(whole).max()


def test_views_tensors_and_read_only_batches() -> None:
    extractor = Extractor(network("squeezenet1_1"), (Node("features.2", "avg"),), STEP)
    images = batch(4)
    wanted = extractor(images)["features.2"]
    locked = images.copy()
    locked.flags.writeable = False
    for same in (locked, torch.from_numpy(images.copy()), np.asfortranarray(images), images[::-1][::-1]):
        np.testing.assert_allclose(extractor(same)["features.2"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "densenet121", "vgg11_bn", "mobilenet_v3_small"]
)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    net = network(name)
    nodes = catalogue.resolve_nodes(name, net)
    images = batch(3)
    full = Extractor(net, nodes, STEP)(images)[nodes[0].name]
    half = Extractor(net, nodes, STEP, "bf16")(images)[nodes[0].name]
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    assert cosine(full, half) >= 0.999


def test_float16_is_close_to_float32() -> None:
    net = network("squeezenet1_1")
    nodes = catalogue.resolve_nodes("squeezenet1_1", net)
    images = batch(1)
    full, half = (Extractor(net, nodes, STEP, p)(images)[nodes[0].name] for p in ("fp32", "fp16"))
    assert cosine(full, half) >= 0.9999


def test_folding_batch_norm_changes_next_to_nothing() -> None:
    """With statistics as after training; a node between the two keeps them apart."""
    net = network("resnet18")
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            module.weight.normal_(1, 0.3, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
    images = Normalise(MEAN, STD, "cpu", torch.float32)(batch(2))
    body = graph.cut(graph.trace(copy.deepcopy(net)), (Node("flatten", "flatten"),))
    split = graph.cut(graph.trace(copy.deepcopy(net)), (Node("conv1", "avg"), Node("flatten", "flatten")))
    with torch.inference_mode():
        before = body(images)["flatten"]
        raw = split(images)["conv1"]
        assert graph.fold_batch_norm(body) == 20
        assert graph.fold_batch_norm(split) == 19
        assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
        assert (body(images)["flatten"] - before).norm() <= 1e-5 * before.norm()
        assert torch.equal(split(images)["conv1"], raw)
        assert (split(images)["flatten"] - before).norm() <= 1e-5 * before.norm()


@pytest.mark.parametrize(
    ("name", "opened", "folded"), [("mobilenet_v2", 35, 52), ("regnet_y_400mf", 53, 53), ("resnet18", 0, 20)]
)
def test_convolution_and_norm_in_one_module_are_folded_too(name: str, opened: int, folded: int) -> None:
    net = network(name)
    nodes = catalogue.resolve_nodes(name, net)
    images = Normalise(MEAN, STD, "cpu", torch.float32)(batch(2))
    body = copy.deepcopy(graph.cut(graph.trace(net), nodes)).eval()
    with torch.inference_mode():
        before = body(images)[nodes[0].name]
        assert graph.open_sequences(body) == opened
        assert torch.equal(body(images)[nodes[0].name], before)
        assert graph.open_sequences(body) == 0
        assert graph.fold_batch_norm(body) == folded
        assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
        assert (body(images)[nodes[0].name] - before).norm() <= 1e-5 * before.norm()


def test_weights_that_are_not_finite_matter_only_where_they_are_used() -> None:
    net = network("vgg11")
    for parameter in net.classifier.parameters():
        parameter.fill_(float("nan"))
    images = batch(1)
    assert np.isfinite(Extractor(net, (Node("flatten", "flatten"),), STEP)(images)["flatten"]).all()
    with pytest.raises(WeightsError, match=r"not finite in classifier\.0\.weight") as error:
        Extractor(net, (Node("classifier.1", "flatten"),), STEP)
    assert "IMAGENET1K_FEATURES" in error.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, SIZE, SIZE, 3), np.float32),
        np.zeros((2, 3, SIZE, SIZE), np.uint8),
        np.zeros((2, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        torch.zeros(2, SIZE, SIZE, 3),
    ],
)
def test_wrong_batches_are_refused(bad: object) -> None:
    extractor = Extractor(network("squeezenet1_1"), (Node("features.2", "avg"),), STEP)
    with pytest.raises(BackboneError, match=rf"must be uint8 \(\d+, {SIZE}, {SIZE}, 3\)"):
        extractor(bad)
    assert extractor(np.zeros((0, SIZE, SIZE, 3), np.uint8))["features.2"].shape == (0, 64)


def test_an_image_size_that_the_network_cannot_take() -> None:
    net = network("vit_b_32")
    with pytest.raises(BackboneError, match="cannot take images of 160 x 160 pixels"):
        Extractor(net, catalogue.resolve_nodes("vit_b_32", net), Preprocess("squash", 160, 160))


def test_unknown_options() -> None:
    net = catalogue.build("squeezenet1_1")
    node = (Node("features.2", "avg"),)
    with pytest.raises(OptionError, match="Unknown precision 'int8'"):
        Extractor(net, node, STEP, "int8")
    with pytest.raises(OptionError, match="Unknown device 'tpu'"):
        Extractor(net, node, STEP, "fp32", "tpu")
    with pytest.raises(BackboneError, match=r"Unknown layer 'features\.99'"):
        Extractor(net, (Node("features.99", "avg"),), STEP)
    with pytest.raises(BackboneError, match=r"'features' is a block.*'features\.12\.cat'"):
        Extractor(net, (Node("features", "avg"),), STEP)
    with pytest.raises(BackboneError, match="No layer"):
        Extractor(net, (), STEP)


def test_forward_only_rate() -> None:
    extractor = Extractor(network("squeezenet1_1"), (Node("features.2", "avg"),), STEP)
    assert extractor.forward_only_rate(4, 0.05) > 1


def test_devices() -> None:
    facts = device_facts()
    names = [device["name"] for device in facts["devices"]]
    assert names[0] == "cpu"
    assert resolve_device("auto") == facts["default"]
    assert facts["default"] in names
    assert resolve_device("cpu") == "cpu"
    assert all(isinstance(device["bf16"], bool) for device in facts["devices"])
    with pytest.raises(OptionError, match="There is no cuda:99 here"):
        resolve_device("cuda:99")
    if len(names) == 1:
        with pytest.raises(OptionError, match="no GPU that torch can use"):
            resolve_device("cuda")


def test_float32_is_float32_and_the_process_gets_its_setting_back() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    with exact_float32():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_threads_that_overlap_leave_the_setting_as_it_was() -> None:
    before = torch.backends.mkldnn.conv.fp32_precision
    first, second = exact_float32(), exact_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.mkldnn.conv.fp32_precision == "ieee", "the second is still inside"
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.conv.fp32_precision == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("bf16", 0.999), ("fp16", 0.9999)])
def test_the_gpu_agrees_with_the_cpu(precision: str, least: float) -> None:
    net = network("resnet18")
    nodes = catalogue.resolve_nodes("resnet18", net)
    images = batch(5)
    cpu = Extractor(net, nodes, STEP)(images)["flatten"]
    gpu = Extractor(net, nodes, STEP, precision, "cuda")(torch.from_numpy(images).pin_memory())["flatten"]
    assert cosine(cpu, gpu) >= least


# -- pooling by value --------------------------------------------------------------------------------------

MAP = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 0.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("pool", "rows"),
    [
        ("flatten", [1, 2, 3, 6, -1, 0, 0, 0]),
        ("avg", [3, -0.25]),
        ("max", [6, 0]),
        ("gem", [((1 + 8 + 27 + 216) / 4) ** (1 / 3), 1e-6]),
        ("avg:1", [3, -0.25]),
        ("avg:2", [1, 2, 3, 6, -1, 0, 0, 0]),
    ],
)
def test_pools_by_value(pool: str, rows: list[float]) -> None:
    for x, last in ((MAP, False), (MAP.permute(0, 2, 3, 1).contiguous(), True), (MAP.bfloat16(), False)):
        got = pool_rows(x, pool, last)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, torch.tensor([rows], dtype=torch.float32))


def test_tokens_and_vectors() -> None:
    tokens = torch.tensor([[[1.0, 5.0], [3.0, -1.0]]])  # (1, T = 2, C = 2)
    assert pool_rows(tokens, "avg").tolist() == [[2, 2]]
    assert pool_rows(tokens, "max").tolist() == [[3, 5]]
    assert pool_rows(tokens, "flatten").tolist() == [[1, 5, 3, -1]]
    assert pool_rows(tokens[:, 0], "avg").tolist() == [[1, 5]]
    with pytest.raises(BackboneError, match="needs a map"):
        pool_rows(tokens, "avg:2")
    with pytest.raises(BackboneError, match="rank 5"):
        pool_rows(torch.zeros(1, 2, 3, 4, 5), "avg")


# -- random weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["resnet152", "efficientnet_b0", "inception_v3", "mnasnet0_5", "mobilenet_v2", "shufflenet_v2_x0_5"],
)
def test_random_weights_give_features_that_float16_holds(name: str) -> None:
    net = network(name)
    nodes = catalogue.resolve_nodes(name, net)
    rows = Extractor(net, nodes, Preprocess("squash", 96, 96, "bilinear", MEAN, STD))(batch(3, 96))[
        nodes[0].name
    ]
    stored = rows.astype(np.float16).astype(np.float32)
    assert np.isfinite(stored).all()
    assert cosine(stored, rows) > 0.9999
    assert stored.std(0).mean() > 1e-5
    assert 1e-4 < np.sqrt((rows**2).mean()) < 1e2
