"""From recipes to merged weights: methods and their checks, plans for the kernels, live models.

`merger.Merger` is where others come in: it takes a recipe of any kind, and gives tensors one after
the other or fills a live model's in place.
"""
