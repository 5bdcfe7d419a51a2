"""Networks: MM-DiT and its baselines, the autoencoder, the text encoders, the frozen image tower.

Nothing here knows about training, data files or devices. Letters: `docs/notation.md`.
"""
