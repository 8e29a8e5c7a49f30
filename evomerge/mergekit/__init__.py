"""mergekit's YAML, read and written.

- `form`: what a configuration may say; `scopes`: a parameter's value for one tensor.
- `reader`, `writer`: configurations as recipes, and back.
- `passthrough`: the same for routed models.
"""
