"""Make the frozen parts that ship: `python -m rectiflow.recipes.parts PART --out DIR`."""
