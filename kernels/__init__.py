"""Weighted DTW between videos and class centroids: forward, path and gradients, on four backends."""

from .dispatch import available_backends, warping_path, weighted_dtw

__all__ = ["available_backends", "warping_path", "weighted_dtw"]
