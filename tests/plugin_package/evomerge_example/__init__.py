"""A plug-in of evomerge."""
