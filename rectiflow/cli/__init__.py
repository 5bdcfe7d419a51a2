"""The command `rectiflow`: one file a verb, each parses its options and calls one function.

Verbs import what they run inside their `run`, so that help and typing errors answer at once.
"""
