"""From a latent store to a model: recipe, state, step, loop, validation, checkpoints, export.

On the walk of a sample the last room. Import the modules one by one.
"""
