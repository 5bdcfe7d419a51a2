"""The embedded world: scenes, pictures, captions, and an oracle that reads pictures back.

Everything that the project trains, tests and scores without downloads starts here. NumPy,
SciPy and Pillow only. The design follows SHAPES, CLEVR and GenEval (arXiv 2310.11513).
"""
