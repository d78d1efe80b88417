"""Backbones by name, their default nodes, layers and shapes."""

from __future__ import annotations

import pytest
import torch

from featcache.backbones import catalogue, graph
from featcache.errors import BackboneError, OptionError
from featcache.recipe import Node

DEFAULTS = {  # backbone -> node, pool, columns
    "vgg16": ("flatten", "flatten", 25088),
    "vgg11_bn": ("flatten", "flatten", 25088),
    "alexnet": ("classifier.5", "flatten", 4096),
    "resnet18": ("flatten", "flatten", 512),
    "resnet50": ("flatten", "flatten", 2048),
    "squeezenet1_0": ("features.12.cat", "avg", 512),
    "densenet121": ("flatten", "flatten", 1024),
    "inception_v3": ("flatten", "flatten", 2048),
    "googlenet": ("flatten", "flatten", 1024),
    "mobilenet_v3_small": ("classifier.1", "flatten", 1024),
    "efficientnet_b0": ("flatten", "flatten", 1280),
    "convnext_tiny": ("classifier.1", "flatten", 768),
    "vit_b_32": ("getitem_5", "flatten", 768),
    "swin_t": ("flatten", "flatten", 768),
    "shufflenet_v2_x0_5": ("mean", "flatten", 1024),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_node(name: str) -> None:
    network = catalogue.skeleton(name)
    node, pool, columns = DEFAULTS[name]
    assert catalogue.default_nodes(name, network) == Node(node, pool)
    shape = graph.shapes(graph.trace(network), 224, name)[node]
    assert (shape[0] if pool == "avg" else torch.Size(shape).numel()) == columns


@pytest.mark.parametrize("name", [name for name in catalogue.names() if name != "pixels"])
def test_every_backbone_has_a_default_node_that_is_the_classifiers_input(name: str) -> None:
    """The classifier applied to the default node's output is the network's output, as far as shapes tell."""
    state = torch.random.get_rng_state()
    network = catalogue.skeleton(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not [key for key, value in network.named_buffers() if value.is_meta]
    node = catalogue.default_nodes(name, network)
    traced = graph.trace(network)
    shape = graph.shapes(traced, 224, name)[node.name]
    linear = graph.last_linear(traced)
    if name.startswith(("vgg", "squeezenet")):
        assert shape in ((25088,), (512, 13, 13))
        return
    assert linear is not None
    assert shape == (traced.module(linear).in_features,)
    assert node.pool == "flatten"


def test_unknown_backbone_names_close_ones_first() -> None:
    with pytest.raises(BackboneError) as error:
        catalogue.build("resnet19")
    assert error.value.message == "Unknown backbone 'resnet19'."
    assert error.value.hint.startswith("Did you mean resnet1")
    assert "vgg16" in error.value.hint


@pytest.mark.parametrize("layer", ["flaten", "layer4.9", "fc2"])
def test_unknown_layer(layer: str) -> None:
    with pytest.raises(BackboneError, match="featcache layers resnet18") as error:
        catalogue.resolve_nodes("resnet18", catalogue.skeleton("resnet18"), [layer])
    assert f"Unknown layer '{layer}' of resnet18" in error.value.message


def test_close_layer_is_named() -> None:
    with pytest.raises(BackboneError, match="Did you mean flatten"):
        catalogue.resolve_nodes("resnet18", catalogue.skeleton("resnet18"), ["flaten"])


def test_nodes_pools_and_blocks() -> None:
    network = catalogue.skeleton("resnet18")

    def nodes(*layers: str, pool: str | None = None) -> tuple[Node, ...]:
        return catalogue.resolve_nodes("resnet18", network, layers, pool)

    assert nodes() == (Node("flatten", "flatten"),)
    assert nodes("layer4") == (Node("layer4.1.relu_1", "avg"),)
    assert nodes("flatten", "layer3.0.conv1") == (Node("flatten", "flatten"), Node("layer3.0.conv1", "avg"))
    assert nodes("layer4", "flatten", pool="max") == (
        Node("layer4.1.relu_1", "max"),
        Node("flatten", "flatten"),
    )
    assert nodes("layer4", pool="avg:2")[0].pool == "avg:2"
    with pytest.raises(BackboneError, match="twice"):
        nodes("layer4", "layer4.1.relu_1")
    with pytest.raises(OptionError, match="Unknown pool 'mean'"):
        nodes("layer4", pool="mean")
    with pytest.raises(OptionError, match="Unknown pool 'avg:0'"):
        nodes("layer4", pool="avg:0")


def test_tokens_are_averaged_unless_flattened() -> None:
    network = catalogue.skeleton("vit_b_32")
    assert catalogue.resolve_nodes("vit_b_32", network, ["encoder.ln"])[0].pool == "avg"
    assert catalogue.resolve_nodes("vit_b_32", network, ["encoder.ln"], "flatten")[0].pool == "flatten"
    with pytest.raises(OptionError, match="does not fit"):
        catalogue.resolve_nodes("vit_b_32", network, ["encoder.ln"], "avg:2")


@pytest.mark.parametrize(
    "name", ["vgg16", "resnet18", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t", "googlenet"]
)
def test_layers_account_for_every_parameter(name: str) -> None:
    rows = catalogue.layers(name)
    assert sum(row.parameters for row in rows) == sum(
        p.numel() for p in catalogue.skeleton(name).parameters()
    )
    assert len({row.name for row in rows}) == len(rows)


def test_layers_of_vgg16() -> None:
    rows = {row.name: row for row in catalogue.layers("vgg16")}
    assert rows["features.0"] == catalogue.LayerInfo("features.0", (64, 224, 224), 1792, "Conv2d")
    assert rows["flatten"] == catalogue.LayerInfo("flatten", (25088,), 0, "flatten")
    assert rows["classifier.6"].shape == (1000,)
    assert {row.name: row.shape for row in catalogue.layers("vgg16", 160)}["features.30"] == (512, 5, 5)


def test_shapes_are_those_of_a_real_forward_pass() -> None:
    network = catalogue.build("squeezenet1_1")
    from torchvision.models.feature_extraction import create_feature_extractor

    wanted = {row.name: row.shape for row in catalogue.layers("squeezenet1_1", 64)}
    nodes = list(wanted)[::7]
    with torch.inference_mode():
        computed = create_feature_extractor(network, nodes)(torch.zeros(2, 3, 64, 64))
    assert {name: tuple(value.shape[1:]) for name, value in computed.items()} == {n: wanted[n] for n in nodes}


@pytest.mark.parametrize(("name", "size"), [("maxvit_t", 230), ("vit_b_16", 100), ("vgg16", 8)])
def test_image_size_that_a_backbone_cannot_take(name: str, size: int) -> None:
    with pytest.raises(BackboneError, match=f"{name} cannot take images of {size} x {size}"):
        catalogue.layers(name, size)


def test_channels_last_maps_are_known() -> None:
    """Swin works on (B, H, W, C) but for its first convolution and its last permutation."""
    traced = graph.trace(catalogue.skeleton("swin_t"))
    last = graph.channels_last(traced)
    shapes = graph.shapes(traced, 224, "swin_t")
    for name, shape in shapes.items():
        if len(shape) == 3 and shape[0] != shape[1]:
            assert traced.nodes[name] not in last, name
        elif len(shape) == 3:
            assert traced.nodes[name] in last, name


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet"]
)
def test_convolutional_networks_are_channels_first_throughout(name: str) -> None:
    traced = graph.trace(catalogue.skeleton(name))
    shapes = graph.shapes(traced, 224, name)
    last = graph.channels_last(traced)
    assert not [n for n, shape in shapes.items() if len(shape) == 3 and traced.nodes[n] in last]
