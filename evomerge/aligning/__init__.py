"""Models that were not made from one another: their units in one order, and their experts merged.

Nothing here is a part of a search: it prepares the models that a search, or a plain merge, takes.
"""
