"""The same artifacts for NVIDIA's Triton Inference Server: a model repository, checked by Triton's own rules."""

from deploykit_serving.triton.config import ModelConfig
from deploykit_serving.triton.repository import Wanted, write_repository
from deploykit_serving.triton.rules import problems

__all__ = ["ModelConfig", "Wanted", "problems", "write_repository"]
