"""Frozen networks that look at pictures: the CLIP image tower, for scores and feature distances."""

from rectiflow.models.vision.image_tower import ImageTower

__all__ = ["ImageTower"]
