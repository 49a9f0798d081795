"""CurveBall's experiments on ImageNet (section 4, figure 2): VGG-f, mini-batches of 256."""

from __future__ import annotations

from raycurv.data import locate, parquet_images
from raycurv.models.vgg_f import vgg_f
from raycurv.train.config import Component, RunConfig, Setting


def imagenet_curveball(
    data: str = "imagenet",
    classes: int | None = None,
    class_seed: int = 0,
    image_size: int = 224,
    width: float = 1.0,
    skip_corrupt: bool = False,
) -> RunConfig:
    """VGG-f on photographs, with CurveBall and nothing to tune.

    The paper follows Chatfield et al. (2014) for everything but the optimizer and leaves the number of epochs open;
    here it is 20, with their weight decay of 5·10⁻⁴ as L2.

    Args:
        data: folder, ``s3://`` or ``gs://`` of Parquet shards, or a name in RAYCURV_DATA.
        classes: draw so many classes, 100 for ImageNet-100.
        class_seed: of that draw.
        image_size: pixels of the square that the network sees.
        width: factor of the network's channels.
        skip_corrupt: leave out and count images that cannot be read.
    """
    settings: dict[str, Setting] = {
        "path": locate(data),
        "image_size": image_size,
        "augmentation": "resize_crop_flip",
        "channels": 3,
        "classes": classes,
        "class_seed": class_seed,
        "skip_corrupt": skip_corrupt,
    }
    return RunConfig(
        name="imagenet" if classes is None else f"imagenet-{classes}",
        model=Component.of(vgg_f, width=width),
        data=Component.of(parquet_images, **settings),
        l2=5e-4,
        batch_size=256,
        epochs=20,
    )
