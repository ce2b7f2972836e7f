"""Public code of the papers beside ours: ``python -m benchmarks.twins METHOD --code CHECKOUT``.

Both programs get the same images, order of batches, passes, weights and rate, draw their own initial tensors, and are
scored image by image over all classes seen. ``docs/fidelity.md`` has the figures. The public code stays in its
checkout; a module per method builds its model for the small encoder and drives it.
"""
