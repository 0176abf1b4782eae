"""Train by Lightning, with its EMA, and judge digits by torchmetrics' FID on the features of a classifier of digits.

pip install "fastndsm[integrations]"
python examples/with_lightning.py [--steps 1500]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.image.fid import FrechetInceptionDistance

import fastndsm
from fastndsm import data, metrics, networks
from fastndsm.integrations.lightning import NDSMModule
from fastndsm.integrations.torchmetrics import Features


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    digits = data.load("digits")
    process = fastndsm.LangevinProcess(fastndsm.GaussianMixture.fit(digits.train, 20, random_state=0))
    net = fastndsm.ResidualScore(networks.MLP(64, (256, 256), horizon=process.T), process)
    module = NDSMModule(net, fastndsm.NDSMLoss(process))
    trainer = Trainer(
        max_steps=steps,
        callbacks=[EMAWeightAveraging(decay=0.99, use_buffers=False)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    batches = DataLoader(TensorDataset(digits.train), batch_size=256, shuffle=True)
    trainer.fit(module, batches, DataLoader(digits.test, batch_size=256))

    features = Features(metrics.FeatureClassifier.fit(digits.train, digits.labels))
    drawn = {
        "held-out digits": digits.test,
        "mixture": process.reference.sample(1000, seed=1).float(),
        "samples": module.sample(1000, seed=1),
    }
    found = {"val_loss": float(trainer.callback_metrics["val_loss"])}
    for name, images in drawn.items():
        fid = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
        fid.update(digits.train, real=True)
        fid.update(images, real=False)
        found[f"FID, {name}"] = float(fid.compute())
    for name, value in found.items():
        print(f"{name:24} {value:.3f}")
    return found


if __name__ == "__main__":
    main()
