"""Building blocks that backbones share: embeddings, modulation, attention, feed-forward."""
