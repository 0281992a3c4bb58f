"""LN tuning (Zhao et al. 2024): LayerNorms trained whole. Its formula is whole.py's."""

from __future__ import annotations

from app.adapters.methods.method import Method

LN_TUNING = Method("LN_TUNING", wrapper="ln_tuning_layers")
