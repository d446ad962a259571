"""An image task: training, calibration and test batches of one data set, ready for one model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prehab_lib.inputs import check_whole
from prehab_lib.tasks import data
from prehab_lib.tasks.digits import PARTS, DigitPairs

SMALL = 64  # images up to this side are cropped with padding; larger ones by a random resized crop, as timm does


@dataclass(frozen=True)
class ImageTask:
    """train, calibration, validation (seed, count) and test(): batches of (images (B, C, H, W),
    labels (B,)).

    The same seed gives the same batches at every pass, so compared arms see the same data.
    calibration draws training images without augmentation; validation is for choices (never the
    test images): held-out digits, or other draws of a data set's training images.  protocol: how
    the score is taken, one sentence, stored with every number.
    """

    name: str
    classes: int
    train: Callable[[int, int], Iterable]
    calibration: Callable[[int, int], Iterable]
    validation: Callable[[int, int], Iterable]
    test: Callable[[], Iterable]
    protocol: str


def open_task(dataset: str, model: nn.Module, batch: int, **options) -> ImageTask:
    """The task of a name: "digits" is embedded, anything else goes to `image_task`, with its
    options and errors.
    """
    if dataset == "digits":
        return digit_task(batch, options.get("test_images"))
    return image_task(dataset, model, batch, **options)


def digit_task(batch: int, test_images: int | None = None) -> ImageTask:
    """Pairs of embedded digits, 100 classes; the test pairs are fixed and come from images never
    trained on.
    """
    test_images = 4000 if test_images is None else test_images
    check_whole(1, test_images=test_images)
    size = min(500, test_images)
    batches = -(-test_images // size)
    held_out = PARTS["test"][1] - PARTS["test"][0]
    return ImageTask(
        name="digit pairs",
        classes=100,
        train=lambda seed, count: DigitPairs("train", batch, count, seed=1000 + seed),
        calibration=lambda seed, count: DigitPairs("train", batch, count, seed=2000 + seed),
        validation=lambda seed, count: DigitPairs("validation", batch, count, seed=3000 + seed),
        test=lambda: DigitPairs("test", size, batches, seed=0),
        protocol=f"top-1 on {size * batches} fixed pairs of {held_out} held-out digit images",
    )


def image_task(
    name: str,
    model: nn.Module,
    batch: int,
    *,
    test_images: int | None = None,
    data_root: str | None = None,
    workers: int = 0,
) -> ImageTask:
    """A data set of `data.DATASETS`, or a folder, sized and normalised as this timm model wants it.

    test_images: score on so many of the test images, the same ones always (None: all).  Raises as
    `data.load` does.
    """
    train, test = data.load(name, "train", data_root), data.load(name, "test", data_root)
    if train.features["label"] != test.features["label"]:
        raise ValueError(
            f"the training and test parts of {name!r} name different classes: they would be numbered differently"
        )
    if test_images is not None:
        check_whole(1, test_images=test_images)
        order = torch.randperm(
            len(test), generator=torch.Generator().manual_seed(0)
        )  # a folder is sorted by class
        test = test.select(order[:test_images].tolist())
    plain, augmented = transforms(model)
    loader = {"batch_size": batch, "num_workers": workers}
    return ImageTask(
        name=name,
        classes=train.features["label"].num_classes,
        train=lambda seed, count: ImageBatches(train, augmented, loader, 1000 + seed, count),
        calibration=lambda seed, count: ImageBatches(train, plain, loader, 2000 + seed, count),
        validation=lambda seed, count: ImageBatches(train, plain, loader, 3000 + seed, count),
        test=lambda: ImageBatches(test, plain, loader),
        protocol=f"top-1 on {len(test)} images of {name}, resized and centre-cropped to {image_size(model)} pixels",
    )


class ImageBatches:
    """Batches of a `datasets.Dataset`: `count` batches drawn with replacement from `seed`, or one
    pass in order.
    """

    def __init__(
        self,
        images,
        transform: Callable,
        loader: dict,
        seed: int | None = None,
        count: int | None = None,
    ):
        self.images, self.transform, self.loader, self.seed, self.count = (
            images,
            transform,
            loader,
            seed,
            count,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(DataLoader(self, sampler=range(len(self.order())), **self.loader))

    def __len__(self) -> int:
        return -(-len(self.order()) // self.loader["batch_size"])

    def order(self) -> list[int]:
        if self.seed is None:
            return list(range(len(self.images)))
        wanted = self.count * self.loader["batch_size"]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(len(self.images), (wanted,), generator=generator).tolist()

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not hasattr(self, "_order"):
            self._order = self.order()
        row = self.images[self._order[i]]
        with torch.random.fork_rng(
            devices=[]
        ):  # each image has its own random crop, whatever the number of workers
            torch.manual_seed((self.seed or 0) * 1_000_003 + i)
            return self.transform(row["image"].convert("RGB")), row["label"]


def transforms(model: nn.Module) -> tuple[Callable, Callable]:
    """(plain, augmented): PIL image -> (3, H, W), by the model's own size, mean, deviation and crop
    as timm records them.
    """
    import timm.data
    from torchvision import transforms as T

    size = image_size(model)
    config = timm.data.resolve_data_config({"input_size": (3, *size)}, model=model)
    normalise = [T.ToTensor(), T.Normalize(config["mean"], config["std"])]
    flip = T.RandomHorizontalFlip()
    if max(size) <= SMALL:
        resize = T.Resize(size)
        return T.Compose([resize, *normalise]), T.Compose(
            [resize, T.RandomCrop(size, padding=max(size) // 8), flip, *normalise]
        )
    plain = timm.data.create_transform(**config, is_training=False)
    return plain, T.Compose(
        [T.RandomResizedCrop(size, interpolation=T.InterpolationMode.BICUBIC), flip, *normalise]
    )


def image_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) the timm model takes."""
    import timm.data

    if hasattr(model, "patch_embed"):
        return tuple(model.patch_embed.img_size)
    return tuple(timm.data.resolve_data_config(model=model)["input_size"][1:])
