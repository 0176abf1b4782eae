"""Samples of a trained network by the reverse process, and the log-likelihood of data under its probability flow."""

from .likelihood import log_likelihood
from .sampler import sample
from .sharded import read_samples, sample_sharded, write_samples

__all__ = ["log_likelihood", "read_samples", "sample", "sample_sharded", "write_samples"]
