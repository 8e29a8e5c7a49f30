"""Recipes as model directories that plain transformers loads.

- `model_directory`: any recipe, merged and written.
- `candidates`: those of an archive, exported or taken as sources.
- `nested_recipes`: recipes whose models are recipes.
- `model_card`: README.md of what is written.
"""
