"""Models on the Hugging Face Hub: a folder of config.json and safetensors of network, process and mixture.

    HubModel(net, process).push_to_hub("me/moons")              # or save_pretrained("folder")
    model = HubModel.from_pretrained("me/moons")                # or "folder"
    samples = model.sample(64)

The folder is that of `checkpoint.save_model`, whose description is called config.json here; `checkpoint.load_model` and
the command line read it too. Nothing in it is unpickled, and no code of it runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .._condition import Condition
from ..latent import Coordinates, LatentModel, encoder_from, encoder_parts
from ..process import NoisingProcess
from ..sampling import log_likelihood, sample
from ..score import called, network_dtype
from ..training import checkpoint
from . import _missing

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
    from huggingface_hub.constants import CONFIG_NAME
except ImportError as error:
    raise _missing("huggingface_hub", error) from error

__all__ = ["HubModel"]

_FILES = ("*.safetensors", CONFIG_NAME)
_INJECTED = {"process", "encoder", "meta"}  # names of config.json that the mixin takes for arguments of __init__


class HubModel(nn.Module, ModelHubMixin, library_name="fastndsm", tags=["score-matching"]):  # type: ignore[call-arg]
    """A score network with its process, and what decodes its samples, with the methods of huggingface_hub's mixin.

    Args:
        score_net: a network, or a ResidualScore of one, as `checkpoint.save_model` takes it.
        process: a LangevinProcess or OUProcess.
        encoder: of a latent model, or the data's Standardizer: what decodes samples. Default: none does.
        meta: JSON-able; comes back with the model.

    `save_pretrained(folder)`, `from_pretrained(name, network=, allow_import=, device=)` and `push_to_hub(name)` are
    those of `huggingface_hub.ModelHubMixin`.
    """

    def __init__(
        self,
        score_net: nn.Module,
        process: NoisingProcess,
        encoder: Coordinates | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _checks.instance("score_net", score_net, nn.Module, "a torch.nn.Module")
        _checks.instance("process", process, NoisingProcess, "a noising process")
        self.score_net, self.process, self.encoder = score_net, process, encoder
        self.meta = dict(meta or {})

    @property
    def device(self) -> torch.device:
        """The process's device."""
        return self.process.times.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's parameters; PyTorch's default where it has none."""
        return network_dtype(self.score_net) or torch.get_default_dtype()

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the score at x [B, ...] and t [B] -> like x."""
        return called(self.score_net, x, t, condition)  # type: ignore[no-any-return]

    def sample(self, n: int, method: str = "sde", **options: Any) -> Tensor:
        """Draw n samples [n, *event], decoded if there is an encoder; options are those of `fastndsm.sample`."""
        if self.encoder is not None:
            return LatentModel(self.encoder, self.score_net, self.process).sample(n, method, **options)  # type: ignore[arg-type]
        return sample(self.score_net, self.process, n, method, **options)

    def log_likelihood(self, x: Tensor, **options: Any) -> Any:
        """Return log p(x) [B] in the network's coordinates; options are those of `fastndsm.log_likelihood`."""
        return log_likelihood(self.score_net, self.process, x, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        parts = None if self.encoder is None else encoder_parts(self.encoder)
        with tempfile.TemporaryDirectory(dir=save_directory) as temporary:
            made = Path(temporary) / "model"
            checkpoint.save_model(made, self.score_net, self.process, meta=self.meta, encoder=parts)
            os.replace(made / checkpoint.DOCUMENT, made / CONFIG_NAME)
            (save_directory / checkpoint.ENCODER_FILE).unlink(missing_ok=True)  # of a model saved there before
            for file in made.iterdir():
                os.replace(file, save_directory / file.name)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        network: checkpoint.Maker | Mapping[str, checkpoint.Maker] | None = None,
        allow_import: str | Sequence[str] = (),
        device: str | torch.device = "cpu",
        **stored: Any,
    ) -> HubModel:
        if unknown := sorted(set(stored) - _INJECTED):
            raise TypeError(f"from_pretrained: expected network, allow_import or device, found {', '.join(unknown)}")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=list(_FILES),
                )
            )
        score_net, process, meta = checkpoint.load_model(folder, device, network=network, allow_import=allow_import)
        parts = checkpoint.load_encoder(folder)
        encoder = None if parts is None else encoder_from(*parts).to(device)
        return cls(score_net, process, encoder, meta).eval()
