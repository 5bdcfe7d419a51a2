"""How good a model is: one benchmark or metric a file, their results, and the report.

Never used by training. Import the modules one by one: results and report need no torch.
"""
