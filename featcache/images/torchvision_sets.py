"""The data sets read through torchvision's classes: one table line each. Light to import.

A new data set is one line: what it is, torchvision's class, its home page, the files and folders it keeps in
the data folder, its official splits, and where its object holds images and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

Reader = Callable[[Any], tuple[Any, Any]]
"""From a torchvision object to (uint8 pixels (N, H, W[, 3]) or a list of N file paths, N labels)."""


class OfficialSet(NamedTuple):
    """One data set of torchvision."""

    about: str
    torchvision: str  # the class in torchvision.datasets
    home: str
    kept: tuple[str, ...]  # names in the data folder
    splits: Mapping[str, Mapping[str, Any]]  # our split → the class's options
    read: Reader


def pixels(images: str, labels: str, found: Any) -> tuple[Any, Any]:
    """Read pixels (N, H, W) or (N, H, W, 3) and labels from two attributes."""
    import numpy as np

    return np.asarray(getattr(found, images)), getattr(found, labels)


def planes(images: str, labels: str, found: Any) -> tuple[Any, Any]:
    """Read pixels stored as (N, 3, H, W), and labels, from two attributes."""
    import numpy as np

    return np.ascontiguousarray(np.transpose(getattr(found, images), (0, 2, 3, 1))), getattr(found, labels)


def files(images: str, found: Any) -> tuple[Any, Any]:
    """Read a list of paths from an attribute, and `_labels`."""
    return [str(path) for path in getattr(found, images)], found._labels


def pairs(attribute: str, found: Any) -> tuple[Any, Any]:
    """Read a list of (path, label) from an attribute."""
    samples = getattr(found, attribute)
    return [str(path) for path, _ in samples], [label for _, label in samples]


def caltech(found: Any) -> tuple[Any, Any]:
    """Read Caltech101, which numbers the images of each category from 1."""
    folder, names = f"{found.root}/101_ObjectCategories", found.categories
    paths = [f"{folder}/{names[y]}/image_{at:04d}.jpg" for y, at in zip(found.y, found.index, strict=True)]
    return paths, found.y


_FLAG = MappingProxyType({"train": {"train": True}, "test": {"train": False}})
_TWO = MappingProxyType({"train": {"split": "train"}, "test": {"split": "test"}})
_THREE = MappingProxyType({"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}})
_PETS = MappingProxyType({"train": {"split": "trainval"}, "test": {"split": "test"}})
_DTD = MappingProxyType({split: {"split": split, "partition": 1} for split in ("train", "val", "test")})
_COUNTRY = MappingProxyType(
    {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}
)
_WHOLE: Mapping[str, Mapping[str, Any]] = MappingProxyType({"train": {}})


def _imagenette(size: str) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({split: {"split": split, "size": size} for split in ("train", "val")})


_DATA = partial(pixels, "data", "targets")
_SAMPLES, _PRIVATE = partial(pairs, "samples"), partial(pairs, "_samples")
_FILES = partial(files, "_image_files")

# One line each: a table is read across.
# ruff: noqa: E501
# fmt: off
SETS: Mapping[str, OfficialSet] = MappingProxyType({
    "cifar10": OfficialSet("60 000 photos of 10 things, 32 x 32", "CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar-10-batches-py",), _FLAG, _DATA),
    "cifar100": OfficialSet("60 000 photos of 100 things, 32 x 32", "CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar-100-python",), _FLAG, _DATA),
    "mnist": OfficialSet("70 000 handwritten digits, grey, 28 x 28", "MNIST", "http://yann.lecun.com/exdb/mnist/", ("MNIST",), _FLAG, _DATA),
    "fashion-mnist": OfficialSet("70 000 pieces of clothing, grey, 28 x 28", "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", ("FashionMNIST",), _FLAG, _DATA),
    "kmnist": OfficialSet("70 000 cursive Japanese characters, grey, 28 x 28", "KMNIST", "https://github.com/rois-codh/kmnist", ("KMNIST",), _FLAG, _DATA),
    "usps": OfficialSet("9 298 handwritten digits, grey, 16 x 16", "USPS", "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/", ("usps.bz2", "usps.t.bz2"), _FLAG, _DATA),
    "svhn": OfficialSet("99 289 house numbers, 32 x 32", "SVHN", "http://ufldl.stanford.edu/housenumbers/", ("train_32x32.mat", "test_32x32.mat"), _TWO, partial(planes, "data", "labels")),
    "stl10": OfficialSet("13 000 photos of 10 things, 96 x 96", "STL10", "https://cs.stanford.edu/~acoates/stl10/", ("stl10_binary",), _TWO, partial(planes, "data", "labels")),
    "flowers102": OfficialSet("8 189 photos of 102 flowers", "Flowers102", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", ("flowers-102",), _THREE, _FILES),
    "oxford-pets": OfficialSet("7 349 photos of 37 breeds of cats and dogs", "OxfordIIITPet", "https://www.robots.ox.ac.uk/~vgg/data/pets/", ("oxford-iiit-pet",), _PETS, partial(files, "_images")),
    "food101": OfficialSet("101 000 photos of 101 dishes", "Food101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", ("food-101",), _TWO, _FILES),
    "dtd": OfficialSet("5 640 photos of 47 textures, partition 1", "DTD", "https://www.robots.ox.ac.uk/~vgg/data/dtd/", ("dtd",), _DTD, _FILES),
    "eurosat": OfficialSet("27 000 satellite images of 10 kinds of land; no test split", "EuroSAT", "https://github.com/phelber/eurosat", ("eurosat",), _WHOLE, _SAMPLES),
    "gtsrb": OfficialSet("39 270 photos of 43 German traffic signs", "GTSRB", "https://benchmark.ini.rub.de/", ("gtsrb",), _TWO, _PRIVATE),
    "caltech101": OfficialSet("8 677 photos of 101 things; no test split", "Caltech101", "https://data.caltech.edu/records/20086", ("caltech101",), _WHOLE, caltech),
    "country211": OfficialSet("63 300 photos from 211 countries", "Country211", "https://github.com/openai/CLIP/blob/main/data/country211.md", ("country211",), _COUNTRY, _SAMPLES),
    "rendered-sst2": OfficialSet("9 613 film reviews as images, good or bad", "RenderedSST2", "https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md", ("rendered-sst2",), _THREE, _PRIVATE),
    "stanford-cars": OfficialSet("16 185 photos of 196 cars; no longer to be downloaded", "StanfordCars", "https://github.com/pytorch/vision/issues/7545", ("stanford_cars",), _TWO, _PRIVATE),
    "imagenette": OfficialSet("13 394 photos of 10 easy ImageNet classes; no test split", "Imagenette", "https://github.com/fastai/imagenette", ("imagenette2",), _imagenette("full"), _PRIVATE),
    "imagenette-320": OfficialSet("the same, shorter side 320", "Imagenette", "https://github.com/fastai/imagenette", ("imagenette2-320",), _imagenette("320px"), _PRIVATE),
    "imagenette-160": OfficialSet("the same, shorter side 160", "Imagenette", "https://github.com/fastai/imagenette", ("imagenette2-160",), _imagenette("160px"), _PRIVATE),
})
# fmt: on
