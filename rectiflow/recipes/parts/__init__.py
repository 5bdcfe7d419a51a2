"""Recipes that make the frozen parts that ship: `python -m rectiflow.recipes.parts PART --out DIR`."""
