"""Optimisation of the small frozen parts: contrastive towers, span corruption, linear probes."""
