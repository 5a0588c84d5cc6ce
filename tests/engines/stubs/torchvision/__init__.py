"""Stands in for torchvision, which has no CPU build beside torch 2.13; nothing that the tests run calls it."""

from . import io, models, transforms, utils  # noqa: F401

__version__ = "0.0"
