"""What a merged model is made of, as frozen values that can be written as JSON and hashed.

- `recipe`: what all kinds have in common; `parse` reads any back from JSON.
- `parameters`, `mixture`, `routing`, `lineage`: the four kinds.
- `parameter_index`: where tensors lie among the flattened parameters.
- `soups`: recipes of the sources that need no search.
"""
