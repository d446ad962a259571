"""An image task: training, calibration and test batches of one data set, ready for one model."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.save.hub import explained, optional
from prehab_lib.tasks import data
from prehab_lib.tasks.drawn import Drawn, Task, drawn_rows, shuffled_rows

DIGITS = {"train": (0, 1000), "validation": (1000, 1297), "test": (1297, 1797)}  # of a shuffle
SMALL = 64  # up to this side images are cropped with padding, else by a random resized crop as timm


@dataclass(frozen=True)
class ImageTask(Task):
    """Batches are (images (B, C, H, W), labels (B,)); only those of "train" are augmented."""

    name: str
    classes: int
    draw: Callable[[str, int, int], Iterable]
    test: Callable[[], Iterable]
    protocol: str  # how the score is taken, stored with every number
    fed: list  # what tells one set of training images from another: tensors or text


def digit_task(batch: int, test_images: int = 4000) -> ImageTask:
    """Pairs of scikit-learn's digits, fixed ones for the test, from images never trained on."""
    # A single digit is too easy to show what compression costs; a pair "37" is of 100 classes.
    check_whole(1, test_images=test_images)
    size = min(500, test_images)
    batches = math.ceil(test_images / size)

    def draw(purpose: str, seed: int, count: int) -> Drawn:
        return digit_pairs("validation" if purpose == "validation" else "train", batch, count, seed)

    test = partial(digit_pairs, "test", size, batches, seed=0)
    first, last = DIGITS["test"]
    protocol = f"top-1 on {size * batches} fixed pairs of {last - first} held-out digit images"
    return ImageTask("digit pairs", 100, draw, test, protocol, [*_digits("train")])


def digit_pairs(part: str, batch: int, count: int, seed: int) -> Drawn:
    """`count` batches of (images (batch, 1, 8, 16) in [0, 1], labels (batch,) in 0…99)."""
    images, digits = _digits(part)

    def pairs(numbers: list[int]) -> tuple[Tensor, Tensor]:
        left, right = torch.tensor(numbers).view(2, batch)
        return torch.cat([images[left], images[right]], dim=3), 10 * digits[left] + digits[right]

    return Drawn(pairs, len(images), 2 * batch, seed, count, replacement=True)


@cache
def _digits(part: str) -> tuple[Tensor, Tensor]:
    """images (k, 1, 8, 8) in [0, 1] and digits (k,) of one part, split before they are paired."""
    check_choice("part", part, DIGITS)
    load_digits = optional("sklearn.datasets").load_digits
    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    mine = shuffled_rows(len(images))[slice(*DIGITS[part])]
    return (images / 16).float().view(-1, 1, 8, 8)[mine], digits[mine]


def open_task(
    dataset: str, model: nn.Module, batch: int, *, test_images=None, data_root=None, workers=0
) -> ImageTask:
    """The task of a name: "digits", a data set of `data.DATASETS`, or a folder.

    model: a timm one, which sizes and normalises.  test_images: score so many, always the same
    (None: all).  workers: processes that read files.  Raises as `data.load` does.
    """
    check_whole(1, batch=batch)
    check_whole(0, workers=workers)
    if dataset == "digits":
        return digit_task(batch, 4000 if test_images is None else test_images)
    images, tested = (data.load(dataset, part, data_root) for part in ("train", "test"))
    names, in_test = (part.features["label"].names for part in (images, tested))
    if in_test != names[: len(in_test)]:
        raise ValueError(f"the training and test parts of {dataset!r} name different classes")
    _check_classes(names, model, dataset)
    first = getattr(getattr(model, "patch_embed", None), "proj", None)
    if getattr(first, "in_channels", 3) != 3:
        raise ValueError(f"{dataset!r} is read as colour images, and the model is of another kind")
    if test_images is not None:
        check_whole(1, test_images=test_images)
        tested = tested.select(shuffled_rows(len(tested))[:test_images])  # folders go by class
    plain, augmented, size = transforms(model)

    def loader(dataset: Prepared, rows: Iterable[int]) -> DataLoader:
        return DataLoader(dataset, batch, sampler=list(enumerate(rows)), num_workers=workers)

    def draw(purpose: str, seed: int, count: int) -> DataLoader:
        rows = drawn_rows(len(images), count * batch, seed, replacement=True)
        return loader(Prepared(images, augmented if purpose == "train" else plain, seed), rows)

    test = partial(loader, Prepared(tested, plain), range(len(tested)))
    prepared = f"resized and centre-cropped to {size} pixels"
    protocol = f"top-1 on {len(tested)} images of {dataset}, {prepared}"
    return ImageTask(dataset, len(names), draw, test, protocol, [images._fingerprint])


def _check_classes(names: list[str], model: nn.Module, dataset: str) -> None:
    """Raises ValueError for more classes than the model has, or the same in another order."""
    known = getattr(model, "num_classes", 0)
    if known and len(names) > known:
        labels = f"labels up to {len(names) - 1}"
        raise ValueError(f"{dataset!r} has {labels}, the model {known} classes")
    said = list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ())
    if set(names) <= set(said) and names != said[: len(names)]:
        order = f"{', '.join(names[:3])}, …, and the model {', '.join(said[:3])}, …"
        raise ValueError(f"the classes of {dataset!r} are {order}: put them in the model's order")


def _in_colour(image):
    """RGB of 8 bits; of 16 bits the upper half, which `convert` would clip."""
    if image.mode.startswith("I"):
        from PIL import Image  # whoever reads no images need not have it

        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    return image.convert("RGB")


@dataclass(frozen=True)
class Prepared:
    """(number of the draw, row) -> the image transformed, and its label."""

    images: object  # a `datasets.Dataset`
    transform: Callable
    seed: int = 0

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        number, row = place
        with explained(f"image {row}", "replace it or take it out"):
            image = self.images[row]
            pixels = _in_colour(image["image"])
        with torch.random.fork_rng(devices=[]):  # a crop of its own, with any number of workers
            torch.manual_seed(self.seed * 1_000_003 + number)
            return self.transform(pixels), image["label"]


def transforms(model: nn.Module) -> tuple[Callable, Callable, tuple[int, int]]:
    """(plain, augmented): PIL image -> (3, H, W), and (H, W), by what timm records of the model."""
    import timm.data
    from torchvision import transforms as T

    patches = getattr(model, "patch_embed", None)
    own = {"input_size": (3, *patches.img_size)} if patches else {}
    config = timm.data.resolve_data_config(own, model=model)
    size = tuple(config["input_size"][1:])
    ending = [T.ToTensor(), T.Normalize(config["mean"], config["std"])]
    flip = T.RandomHorizontalFlip()
    if max(size) <= SMALL:
        resize, crop = T.Resize(size), T.RandomCrop(size, padding=max(size) // 8)
        return T.Compose([resize, *ending]), T.Compose([resize, crop, flip, *ending]), size
    crop = T.RandomResizedCrop(size, interpolation=T.InterpolationMode.BICUBIC)
    plain = timm.data.create_transform(**config, is_training=False)
    return plain, T.Compose([crop, flip, *ending]), size
