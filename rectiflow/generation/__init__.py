"""The walk of a prompt: a model from its files, one function a stage, pictures on the disk.

Import the modules one by one: settings and pictures need no torch.
"""
