"""Merging tensors, given as numbers: a frozen `merge_plan.MergePlan` in, digests out.

Three back ends say the same, bit for bit: `eager` is the reference, `fused` has a Triton
program for a GPU, `native` is the one in C++ for a processor. `backends.Kernels` picks. What a
merge is *for*, methods and recipes, is not known here.
"""
