"""Explain: which images a network gets wrong, and where it looked."""

from __future__ import annotations

from fastcifar.explain.cam import CamResult, default_stage, grad_cam
from fastcifar.explain.gallery import Explanation, explain_run

__all__ = ["CamResult", "Explanation", "default_stage", "explain_run", "grad_cam"]
