"""Models on disk, by their headers: opened, hashed, compared with one another.

- `source`: a model directory, with or without an adapter; `open_source` opens any.
- `safetensors_file`, `lora`, `factory`: what a source may be made of.
- `hub`: what is looked at there, and fetched.
- `digest`: the one pass over a source's weights.
- `compatibility`, `architectures`: which sources can be merged, or routed through.
"""
