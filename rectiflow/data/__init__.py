"""Captioned pictures on the way to batches: folder → curation → encoding → latent store → loader.

The walk of a sample in one line of records: `RawSample` → `CuratedSample` → `EncodedSample` →
`Batch`. Nothing here knows how a model is trained. Import the modules one by one: reading a store
needs neither Pillow nor an encoder.
"""
