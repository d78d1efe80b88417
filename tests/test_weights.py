"""Weights: resolved, fetched from a server on loopback, checked, loaded, refused."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featcache.backbones import catalogue, download, statefile, weights
from featcache.errors import BackboneError, OptionError, WeightsError
from tests.kit_http import Site, serve

NAME = "squeezenet1_1"  # the smallest: 4.9 MB


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return weights.load(NAME, weights.resolve(NAME, "random:7"))[0]


@pytest.fixture(scope="module")
def content(state: dict[str, torch.Tensor]) -> bytes:
    return saved(state)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def official(site: Site, folder: Path, content: bytes, served: bytes | None = None) -> weights.WeightsChoice:
    """An official choice whose file is `content`, served from loopback as `served`."""
    prefix = hashlib.sha256(content).hexdigest()[:8]
    path = folder / "hub" / "checkpoints" / f"squeezenet1_1-{prefix}.pth"
    site.files[f"/{path.name}"] = content if served is None else served
    choice = weights.resolve(NAME)
    return replace(choice, url=f"{site.url}/{path.name}", sha256_prefix=prefix, path=path, notes=[])


def from_file(path: Path, name: str = NAME) -> tuple[dict[str, torch.Tensor], list[str]]:
    choice = weights.resolve(name, str(path))
    return weights.load(name, choice)[0], choice.notes


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- resolving ---------------------------------------------------------------------------------------------


def test_default_is_resolved_to_its_full_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    choice = weights.resolve("resnet18", "DEFAULT")
    assert choice.name == "ResNet18_Weights.IMAGENET1K_V1"
    assert choice.url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert choice.sha256_prefix == "f37072fd"
    assert choice.files() == [tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"]
    assert not choice.on_disk
    for spec in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"):
        assert weights.resolve("resnet18", spec) == choice
    assert weights.resolve("resnet50").name == "ResNet50_Weights.IMAGENET1K_V2"


def test_every_official_file_can_be_checked_by_its_hash() -> None:
    from torchvision.models import get_model_weights

    for name in set(catalogue.names()) - {"pixels"}:
        for entry in get_model_weights(name):
            choice = weights.resolve(name, str(entry))
            assert choice.name == str(entry)
            assert len(choice.sha256_prefix) >= 8
            assert choice.transform.crop <= choice.transform.resize


@pytest.mark.parametrize(
    "spec", ["imagenet", "ResNet50_Weights.IMAGENET1K_V1", "IMAGENET1K_V9", "", "random"]
)
def test_unknown_weights(spec: str) -> None:
    with pytest.raises(OptionError, match="Unknown weights") as error:
        weights.resolve("resnet18", spec)
    assert "ResNet18_Weights.IMAGENET1K_V1" in error.value.hint
    assert "random:SEED" in error.value.hint


@pytest.mark.parametrize("spec", ["random:", "random:-1", "random:x", "random:99999999999999999999"])
def test_bad_seed(spec: str) -> None:
    with pytest.raises(OptionError, match="seed"):
        weights.resolve("resnet18", spec)


def test_unknown_backbone() -> None:
    with pytest.raises(BackboneError, match="Unknown backbone"):
        weights.resolve("resnet19")


# -- random ------------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone(state: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    again, identity = weights.load(NAME, weights.resolve(NAME, "random:07"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert identity.name == "random:7"
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert identity.sha256 != weights.load(NAME, weights.resolve(NAME, "random:8"))[1].sha256


@pytest.mark.parametrize("name", [NAME, "mnasnet0_5"])  # without and with batch norms to calibrate
def test_random_weights_are_the_same_in_another_process(name: str) -> None:
    code = (
        "from featcache.backbones import weights as w; import sys, torch;"
        "torch.set_num_threads(2);"
        f"sys.stdout.write(w.load({name!r}, w.resolve({name!r}, 'random:7'))[1].sha256)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert other.stdout == weights.load(name, weights.resolve(name, "random:7"))[1].sha256
    finally:
        torch.set_num_threads(threads)


# -- official files ----------------------------------------------------------------------------------------


def test_fetched_checked_and_kept(
    site: Site, tmp_path: Path, content: bytes, state: dict[str, torch.Tensor]
) -> None:
    choice, told = official(site, tmp_path, content), []
    loaded, identity = weights.load(NAME, choice, lambda done, total: told.append((done, total)))
    assert identity.name == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert told[-1] == (len(content), len(content))
    assert [path.name for path in choice.files()[0].parent.iterdir()] == [choice.files()[0].name]
    assert weights.load(NAME, choice)[1] == identity
    assert len(site.asked) == 1


def test_the_old_format_loads_too(
    site: Site, tmp_path: Path, state: dict[str, torch.Tensor], content: bytes
) -> None:
    old = saved(state, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(io.BytesIO(old))
    got = weights.load(NAME, official(site, tmp_path / "old", old))[1]
    assert got == weights.load(NAME, official(site, tmp_path / "new", content))[1]


def test_wrong_hash_from_the_server(site: Site, tmp_path: Path, content: bytes) -> None:
    choice = official(site, tmp_path, content, served=b"<html>proxy</html>" * 999)
    with pytest.raises(WeightsError, match=f"should begin with {choice.sha256_prefix}, got") as error:
        weights.load(NAME, choice)
    assert "removed" in error.value.message
    assert "--weights PATH" in error.value.hint
    assert list(choice.files()[0].parent.iterdir()) == []


def test_wrong_hash_on_disk_is_found_at_every_load(site: Site, tmp_path: Path, content: bytes) -> None:
    choice = official(site, tmp_path, content)
    weights.load(NAME, choice)
    path = choice.files()[0]
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WeightsError, match="not the official file of SqueezeNet1_1_Weights") as error:
        weights.load(NAME, choice)
    assert str(path) in error.value.message
    assert "delete it" in error.value.hint
    assert path.read_bytes() == bytes(damaged), "a file that we did not just fetch is not ours to remove"


def test_cut_off(site: Site, tmp_path: Path, content: bytes) -> None:
    choice = official(site, tmp_path, content)
    site.cut.add(f"/{choice.files()[0].name}")
    with pytest.raises(WeightsError, match=f"cut off after {len(content) // 2} of {len(content)} bytes"):
        weights.load(NAME, choice)
    assert list(choice.files()[0].parent.iterdir()) == []
    site.cut.clear()
    weights.load(NAME, choice)


def test_cut_off_without_a_length_is_found_by_the_hash(site: Site, tmp_path: Path, content: bytes) -> None:
    choice = official(site, tmp_path, content)
    name = f"/{choice.files()[0].name}"
    site.cut.add(name)
    site.unsized.add(name)
    with pytest.raises(WeightsError, match="should begin with"):
        weights.load(NAME, choice)


def test_stalled(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = b"x" * 1000
    site.stalled.add("/a")
    with pytest.raises(WeightsError, match="timed out"):
        download.fetch(f"{site.url}/a", tmp_path / "a", "", timeout=0.5)
    assert list(tmp_path.iterdir()) == []


def test_absent_from_the_server(site: Site, tmp_path: Path, content: bytes) -> None:
    choice = official(site, tmp_path, content)
    site.files.clear()
    with pytest.raises(WeightsError, match="the server answered 404") as error:
        weights.load(NAME, choice)
    assert choice.url in error.value.message
    assert str(choice.files()[0]) in error.value.hint
    assert "--weights PATH" in error.value.hint


def test_offline(tmp_path: Path, content: bytes) -> None:
    with serve() as gone:
        choice = official(gone, tmp_path, content)
    with pytest.raises(WeightsError, match=r"cannot be fetched from http.*refused") as error:
        weights.load(NAME, choice)
    assert str(choice.files()[0]) in error.value.hint


def test_larger_than_the_limit(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = b"x" * 1000
    for unsized in (False, True):
        site.unsized = {"/a"} if unsized else set()
        with pytest.raises(WeightsError, match="larger than 999 bytes"):
            download.fetch(f"{site.url}/a", tmp_path / "a", "", limit=999)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "nowhere"])
def test_other_schemes_are_not_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="only http and https"):
        download.fetch(url, tmp_path / "a", "")


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_runs_nothing(
    site: Site, tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    canary = tmp_path / "canary"
    hostile = saved({**state, "x": Canary(canary)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="could run code"):
        weights.load(NAME, official(site, tmp_path, hostile))
    with pytest.raises(WeightsError, match="could run code"):
        from_file(write(tmp_path / "hostile.pth", hostile))
    assert not canary.exists()
    torch.load(io.BytesIO(hostile), weights_only=False)
    assert canary.exists(), "the file is hostile indeed"


# -- files of one's own ------------------------------------------------------------------------------------


def test_one_hash_for_one_content(tmp_path: Path, state: dict[str, torch.Tensor], content: bytes) -> None:
    save_file(dict(reversed(state.items())), tmp_path / "a.safetensors")
    paths = [
        tmp_path / "a.safetensors",
        write(tmp_path / "b.pth", content),
        write(tmp_path / "c.pt", content),
    ]
    identities = [weights.load(NAME, weights.resolve(NAME, str(path)))[1] for path in paths]
    assert {identity.name for identity in identities} == {"file"}
    assert {identity.sha256 for identity in identities} == {statefile.content_hash(state)}


def test_the_hash_sees_names_values_shapes_and_dtypes() -> None:
    base = {"a": torch.arange(6, dtype=torch.float32), "b": torch.zeros(2)}
    others = [
        {**base, "a": base["a"] + 1},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].double()},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    hashes = {statefile.content_hash(each) for each in (base, *others)}
    assert len(hashes) == 6
    counted = {**base, "bn.num_batches_tracked": torch.tensor(9)}
    assert statefile.content_hash(counted) == statefile.content_hash(dict(reversed(base.items())))
    assert statefile.content_hash({"a": torch.arange(6.0).reshape(2, 3).T}) == statefile.content_hash(
        {"a": torch.arange(6.0).reshape(2, 3).T.contiguous()}
    )


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_are_opened_and_it_is_said(
    tmp_path: Path, state: dict[str, torch.Tensor], key: str
) -> None:
    wrapped = {f"module.{name}": value for name, value in state.items()}
    got, notes = from_file(write(tmp_path / "a.pth", saved({key: wrapped, "epoch": 3, "lr": 0.1})))
    assert all(torch.equal(got[name], state[name]) for name in state)
    assert any(repr(key) in note for note in notes)
    assert any("module." in note for note in notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32_and_it_is_said(
    tmp_path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    got, notes = from_file(write(tmp_path / "a.pth", saved({k: v.to(dtype) for k, v in state.items()})))
    assert all(torch.equal(got[name], state[name].to(dtype).float()) for name in state)
    assert any(str(dtype).removeprefix("torch.") in note for note in notes)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = {key.replace("features.0.", "stem."): value for key, value in state.items()}
    with pytest.raises(WeightsError) as error:
        from_file(write(tmp_path / "a.pth", saved(wrong)))
    assert "2 missing (features.0.weight, features.0.bias)" in error.value.message
    assert "2 unexpected (stem.weight, stem.bias) of 52 tensors" in error.value.message


def test_weights_of_another_backbone_are_recognised(
    tmp_path: Path, state: dict[str, torch.Tensor], content: bytes
) -> None:
    with pytest.raises(WeightsError, match="those of squeezenet1_1: use --backbone squeezenet1_1"):
        from_file(write(tmp_path / "a.pth", content), "squeezenet1_0")
    with pytest.raises(WeightsError, match="those of squeezenet1_1"):
        from_file(write(tmp_path / "squeezenet.pth", content), "mnasnet0_5")


def test_a_classifier_that_the_weights_lack_is_refused_by_name() -> None:
    features = weights.resolve("vgg16", "IMAGENET1K_FEATURES")
    for layers in ([], ["flatten"], ["features.28", "avgpool"]):
        weights.check_layers(features, layers)
    for layers in (["classifier"], ["flatten", "classifier.3"]):
        weights.check_layers(weights.resolve("vgg16"), layers)
        with pytest.raises(WeightsError, match="no classifier, which layer 'classifier") as error:
            weights.check_layers(features, layers)
        assert "IMAGENET1K_FEATURES" in error.value.hint


def test_a_classifier_of_other_classes_is_explained(tmp_path: Path) -> None:
    name = "shufflenet_v2_x0_5"
    network = catalogue.build(name)
    network.fc = torch.nn.Linear(network.fc.in_features, 10)
    with pytest.raises(WeightsError, match=r"fc.weight should be \(1000, 1024\), got \(10, 1024\)") as error:
        from_file(write(tmp_path / "a.pth", saved(network.state_dict())), name)
    assert "Only fc, the classifier, differs" in error.value.hint


def test_integers_for_floats_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"features\.0\.bias should be float32, got int64"):
        from_file(
            write(tmp_path / "a.pth", saved({**state, "features.0.bias": torch.zeros(64, dtype=torch.long)}))
        )


def test_a_shape_made_of_nothing_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """A stride of 0 lets four bytes claim any size; the shape is refused before anything is made of it."""
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    with pytest.raises(WeightsError, match=r"features\.0\.bias should be"):
        from_file(write(tmp_path / "a.pth", saved({**state, "features.0.bias": huge})))


def test_files_that_unpack_to_too_much_are_refused(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(100 << 20))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    with pytest.raises(WeightsError, match=r"unpacks to 104\.9 MB"):
        from_file(tmp_path / "bomb.pth")
    with open(tmp_path / "large.safetensors", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(WeightsError, match=r"unpacks to 1073\.7 MB"):
        from_file(tmp_path / "large.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("what", ["empty", "cut", "html"])
def test_damaged_files(
    tmp_path: Path, content: bytes, state: dict[str, torch.Tensor], suffix: str, what: str
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        whole.write_bytes(content)
    else:
        save_file(state, whole)
    data = {"empty": b"", "cut": whole.read_bytes()[:-1000], "html": b"<html>404</html>"}[what]
    with pytest.raises(WeightsError, match=f"broken{suffix}"):
        from_file(write(tmp_path / f"broken{suffix}", data))


def test_the_tar_format_of_2016_is_explained(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(WeightsError, match="tar format of 2016"):
        from_file(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {}, {"state_dict": {}}, {3: torch.zeros(1)}])
def test_files_without_weights(tmp_path: Path, value: object) -> None:
    with pytest.raises(WeightsError, match=r"holds"):
        from_file(write(tmp_path / "a.pth", saved(value)))


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        from_file(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError, match="no weights file"):
        from_file(tmp_path / "folder.pth")


# -- layouts of old official files -------------------------------------------------------------------------


def test_old_files_without_counters(tmp_path: Path) -> None:
    name = "shufflenet_v2_x0_5"
    full, identity = weights.load(name, weights.resolve(name, "random:0"))
    old = {key: value for key, value in full.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(full)
    path = write(tmp_path / "a.pth", saved(old))
    got, again = weights.load(name, weights.resolve(name, str(path)))
    assert list(got) == list(full)
    assert again.sha256 == identity.sha256


def test_densenets_old_names(tmp_path: Path) -> None:
    full, identity = weights.load("densenet121", weights.resolve("densenet121", "random:0"))

    def old(key: str) -> str:
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:4]}.{part[4:]}.") if "denselayer" in key else key
        return key

    path = write(tmp_path / "a.pth", saved({old(key): value for key, value in full.items()}))
    assert any(".norm.1." in key for key in map(old, full))
    assert weights.load("densenet121", weights.resolve("densenet121", str(path)))[1].sha256 == identity.sha256


def test_heads_that_only_training_uses_are_left_out(tmp_path: Path) -> None:
    """The official GoogLeNet file has them."""
    from torchvision.models import googlenet

    trained = googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()
    path = write(tmp_path / "a.pth", saved(trained))
    got, notes = from_file(path, "googlenet")
    assert any(key.startswith("aux1.") for key in trained)
    assert not any(key.startswith("aux") for key in got)
    assert notes == []


def test_every_tensor_of_a_vit_at_another_size(tmp_path: Path) -> None:
    """A ViT's weights tell for which image size they are; the old names of its layers are known."""
    from torchvision.models import VisionTransformer

    small = VisionTransformer(96, 32, 12, 12, 768, 3072)  # vit_b_32 at 96 pixels
    current = {key: value.half() for key, value in small.state_dict().items()}
    old = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for key, v in current.items()
    }
    got, _ = from_file(write(tmp_path / "a.pth", saved(old)), "vit_b_32")
    network = weights.assemble("vit_b_32", got)
    assert network.image_size == 96
    assert torch.equal(
        network.encoder.layers[3].mlp[3].weight,
        current["encoder.layers.encoder_layer_3.mlp.3.weight"].float(),
    )


# -- assembling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnasnet0_5", "regnet_y_400mf", "swin_t", NAME])
def test_an_assembled_network_computes_what_a_built_one_does(name: str) -> None:
    state, _ = weights.load(name, weights.resolve(name, "random:3"))
    built = catalogue.build(name)
    built.load_state_dict(state)
    ours = weights.assemble(name, state)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(images), built(images))
    assert not any(p.requires_grad or p.is_meta for p in ours.parameters())
    assert isinstance(state, OrderedDict)


def test_a_network_that_takes_one_size_alone_is_calibrated_at_it() -> None:
    state, _ = weights.load("maxvit_t", weights.resolve("maxvit_t", "random:0"))
    variances = [float(value[0]) for key, value in state.items() if key.endswith("running_var")]
    assert variances
    assert any(value != 1 for value in variances)
