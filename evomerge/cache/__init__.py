"""The cache under `$XDG_CACHE_HOME/evomerge`: what lies there, who uses it, and what has to go."""

# The folders whose entries are ours to remove, and what they hold.
KINDS = {
    "candidates": "candidates of runs, merged to be sources",
    "prepared": "prepared task vectors",
    "observed": "what models' layers read of texts, for methods that merge by them",
    "factories": "weights that a function drew by a seed",
    "recipes": "merges within a merge, or a push, under way",
    "experts": "what experts say to prompts",
    "native": "compiled kernels",
    "digests": "hashes of sources",
}
