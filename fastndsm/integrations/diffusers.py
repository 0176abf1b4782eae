"""Models of diffusers as networks here, and the sampler here as a pipeline there.

unet = diffusers.UNet2DModel(sample_size=28, in_channels=1, out_channels=1, ...)
net = fastndsm.ResidualScore(DiffusersNetwork(unet, process.T), process)        # train it
pipeline = NDSMPipeline(HubModel(net, process))
pipeline.save_pretrained("folder")
images = NDSMPipeline.from_pretrained("folder")(batch_size=4, num_inference_steps=10).images
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from . import _missing
from .huggingface_hub import HubModel

try:
    import diffusers
    from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
    from huggingface_hub import snapshot_download
except ImportError as error:
    raise _missing("diffusers", error) from error

__all__ = ["DiffusersNetwork", "NDSMPipeline"]

_OUTPUTS = ("pil", "np", "pt", "latent")
_FOLDER = "model"  # of a pipeline's


class DiffusersNetwork(nn.Module):
    """A model of diffusers, called (x, t) or (x, t, condition): a UNet2DModel, a DiTTransformer2DModel and their like.

    Its `.sample` is taken, the first half of the channels where it gives a variance beside, and a condition, labels
    int64 [B], is its `class_labels`. It starts as diffusers made it: for a residual that starts at 0, zero the last
    layer, of a UNet2DModel `conv_out`.

    Args:
        model: the model; or its config, with "_class_name", for one that is not trained.
        horizon: T. Times 0..T become timesteps 0..`timesteps`.
        timesteps: the largest timestep, of which the model's time embedding can tell 1 apart.
        null_class: the label of no condition, which condition dropout trains and guidance calls for: one that no sample
            has, so that the model has a class more. Default: that of a DiT's own label dropout; None for others.
    """

    def __init__(
        self,
        model: ModelMixin | Mapping[str, Any],
        horizon: float = 1.0,
        *,
        timesteps: float = 1000.0,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        made = _made(model) if isinstance(model, Mapping) else model
        self.model = _checks.instance("model", made, ModelMixin, "a model of diffusers")
        self.horizon, self.timesteps = _checks.positive("horizon", horizon), _checks.positive("timesteps", timesteps)
        arguments = list(inspect.signature(self.model.forward).parameters)
        self._labelled = "class_labels" in arguments and getattr(self.model, "class_embedding", self) is not None
        if null_class is None and self._labelled:
            null_class = _null_class_of_dit(self.model)
        if null_class is not None and not self._labelled:
            raise ValueError(f"null_class: expected None for a model without classes, found {null_class}")
        self.null_class = null_class if null_class is None else _checks.count("null_class", null_class, 0)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; the model by its config."""
        own = {k: v for k, v in dict(self.model.config).items() if not k.startswith("_")}
        described = {"_class_name": type(self.model).__name__, **own}
        return {
            "model": described,
            "horizon": self.horizon,
            "timesteps": self.timesteps,
            "null_class": self.null_class,
        }

    @property
    def takes_condition(self) -> bool:
        """True if the model has classes."""
        return self._labelled

    @property
    def null_condition(self) -> Callable[[Tensor], Tensor]:
        """The function condition -> like it, the null class for every row; there is none without a null class."""
        if self.null_class is None:
            raise AttributeError("null_condition: expected a network with null_class, found one without")
        label = self.null_class
        return lambda condition: torch.full_like(condition, label)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the model's sample [B, C, H, W] for x [B, C or 2 C, H, W], t [B] and labels [B]."""
        given: dict[str, Tensor] = {}
        if self._labelled:
            if condition is None:
                if self.null_class is None:
                    raise ValueError("condition: expected labels [B] for a model with classes, found None")
                condition = x.new_full((len(x),), self.null_class, dtype=torch.int64)
            given["class_labels"] = condition.long()
        elif condition is not None:
            raise ValueError("condition: expected None for a model without classes, found one")
        out: Tensor = self.model(x, t * (self.timesteps / self.horizon), **given).sample
        return out[:, : x.shape[1]]


def _made(config: Mapping[str, Any]) -> Any:
    """Make an untrained model of a class of diffusers, and of nothing else, by its config."""
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, ModelMixin):
        raise ValueError(f"model: expected a config with the _class_name of a model of diffusers, found {name!r}")
    made: Any = kind
    return made.from_config(dict(config))


def _null_class_of_dit(model: Any) -> int | None:
    """Return the label that a DiT's own dropout gives, if it has that."""
    for module in model.modules():
        if type(module).__name__ == "LabelEmbedding" and module.dropout_prob > 0:
            return int(module.num_classes)
    return None


class NDSMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The sampler as a pipeline: `pipeline(batch_size=4).images`, `save_pretrained`, `from_pretrained`, `push_to_hub`.

    Args:
        model: a HubModel: network, process, and what decodes samples.
    """

    def __init__(self, model: HubModel) -> None:
        super().__init__()
        _checks.instance("model", model, HubModel, "a HubModel")
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Draw images, given from -1 to 1, as ImagePipelineOutput or a tuple.

        Args:
            generator: gives the seed; default PyTorch's.
            num_inference_steps: evaluations of the network, n_evaluations of `fastndsm.sample`, default 10.
            class_labels: one for all, or one an image. guidance_scale: `guidance` of `fastndsm.sample`.
            output_type: "pil", "np" [n, H, W, C] or "pt" [n, C, H, W] in 0..1; "latent" for the samples as they are,
                of any shape.
            options: further ones of `fastndsm.sample`, such as method="ode".
        """
        _checks.choice("output_type", output_type, _OUTPUTS)
        device = self.model.device
        if class_labels is not None:
            labels = torch.as_tensor(class_labels, dtype=torch.int64, device=device).reshape(-1)
            options["condition"] = labels.expand(batch_size) if len(labels) == 1 else labels
        source = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=source))
        quiet = bool(getattr(self, "_progress_bar_config", {}).get("disable", False))
        samples = self.model.sample(
            batch_size,
            seed=seed,
            n_evaluations=num_inference_steps,
            guidance=guidance_scale,
            progress=not quiet,
            **options,
        )
        images = samples if output_type == "latent" else self._images(samples, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _images(self, samples: Tensor, output_type: str) -> Any:
        if samples.ndim != 4 or samples.shape[1] not in (1, 3, 4):
            raise ValueError(
                "output_type: expected 'latent' for samples that are no images [n, 1, 3 or 4, H, W], found "
                f"{output_type!r} for shape {tuple(samples.shape)}"
            )
        images = (samples.float() / 2.0 + 0.5).clamp(0.0, 1.0)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **options: Any
    ) -> None:
        """Write model_index.json, and the model into a folder beside it.

        options: repo_id and others of `push_to_hub`, if push_to_hub=True is among them.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization: expected True, as nothing is pickled here, found False")
        if options.pop("variant", None) is not None:
            raise ValueError("variant: expected None, found one")
        push = options.pop("push_to_hub", False)
        if not push and options:
            raise TypeError(f"save_pretrained: expected push_to_hub=True with {', '.join(options)}, found False")
        self.model.save_pretrained(Path(save_directory) / _FOLDER)
        self.save_config(save_directory)
        if push:
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    @classmethod
    def from_pretrained(  # type: ignore[no-untyped-def]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options
    ) -> NDSMPipeline:
        """Load what `save_pretrained` wrote to a folder, or `push_to_hub` to the Hub.

        options: network, allow_import and device of `HubModel.from_pretrained`; revision, cache_dir, token,
        force_download and local_files_only of the download. A module that the folder names is not imported.
        """
        folder = Path(pretrained_model_name_or_path)
        network = options.pop("network", None)
        if network is None or isinstance(network, Mapping):
            network = {DiffusersNetwork.__name__: DiffusersNetwork, **(network or {})}
        if not folder.is_dir():
            names = ("revision", "cache_dir", "token", "force_download", "local_files_only")
            download = {name: options.pop(name) for name in names if name in options}
            patterns = [cls.config_name, f"{_FOLDER}/*"]
            folder = Path(snapshot_download(os.fspath(folder), allow_patterns=patterns, **download))
        return cls(HubModel.from_pretrained(folder / _FOLDER, network=network, **options))
