"""Merging tensors, given as numbers: a frozen `merge_plan.MergePlan` in, digests out.

Three back ends say the same, bit for bit: `eager` is the reference, `compiled` is torch.compile's
form of it for a GPU, `native` the one in C++ for a processor. `backends.Kernels` picks. What a
merge is *for*, methods and recipes, is not known here.
"""
