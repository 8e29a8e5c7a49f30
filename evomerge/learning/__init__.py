"""Coefficients of task arithmetic learned by gradients: baselines, and starts of a search."""
