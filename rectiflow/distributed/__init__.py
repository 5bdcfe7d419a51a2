"""Several processes as one: who takes part, how a model is cut among them, how they end together.

It knows nothing of the models but that a module has `blocks`, and no model knows of it.
"""
