"""Placement bookkeeping above the kernels."""
