"""Train a UNet2DModel of diffusers on digits by class; hand it on as a folder of the Hugging Face Hub, as a pipeline.

    pip install "fastndsm[integrations]"
    python examples/hub_and_pipeline.py [--steps 600] [--folder runs/hub]

`push_to_hub("name/of-repository")` of either uploads what is written here to a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

import fastndsm
from fastndsm import data, metrics, training
from fastndsm.integrations.diffusers import DiffusersNetwork, NDSMPipeline
from fastndsm.integrations.huggingface_hub import HubModel


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--folder", default="runs/hub")
    given = parser.parse_args(arguments)
    folder = Path(given.folder)

    torch.manual_seed(0)
    digits = data.load("digits")  # [., 1, 8, 8] from -1 to 1
    process = fastndsm.LangevinProcess(fastndsm.GaussianMixture.fit(digits.train, 20, random_state=0))
    process.fit_prior(digits.train, digits.labels)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=11,  # ten digits, and none of them
    )
    torch.nn.init.zeros_(unet.conv_out.weight)  # a residual that starts at 0
    torch.nn.init.zeros_(unet.conv_out.bias)
    net = fastndsm.ResidualScore(DiffusersNetwork(unet, process.T, null_class=10), process)
    config = training.TrainConfig(steps=given.steps, batch_size=64)
    trainer = training.Trainer(net, fastndsm.NDSMLoss(process), digits.train, config, conditions=digits.labels)
    trainer.fit()

    model = HubModel(trainer.ema_net, process, meta={"data": "digits"})
    model.save_pretrained(folder / "model")
    again = HubModel.from_pretrained(folder / "model", network=DiffusersNetwork)
    NDSMPipeline(again).save_pretrained(folder / "pipeline")
    pipeline = NDSMPipeline.from_pretrained(folder / "pipeline")

    pictures = pipeline(batch_size=10, class_labels=range(10), generator=torch.Generator().manual_seed(0)).images
    Image.fromarray(np.hstack([np.asarray(picture) for picture in pictures])).save(folder / "digits.png")

    labels = torch.arange(200) % 10
    options = {"condition": labels, "seed": 1}
    samples, from_hub = model.sample(200, **options), pipeline.model.sample(200, **options)
    classifier = metrics.FeatureClassifier.fit(digits.train, digits.labels)
    found = {
        "largest difference after two loads": float((samples - from_hub).abs().max()),
        "share of samples of their class": classifier.accuracy(from_hub, labels),
        "share of held-out digits": classifier.accuracy(digits.test, digits.test_labels),
    }
    for name, value in found.items():
        print(f"{name:36} {value:.3f}")
    return found


if __name__ == "__main__":
    main()
