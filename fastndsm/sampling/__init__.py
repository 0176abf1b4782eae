"""Samples of a trained network by the reverse process, and the log-likelihood of data under its probability flow."""

from .likelihood import log_likelihood
from .sampler import sample

__all__ = ["log_likelihood", "sample"]
