"""The backbones that arXiv 2403.03206, section 5.2.3, compares MM-DiT with.

The paper names them and prints no sizes; `rectiflow.models.matching` makes equal ones.
"""
