"""One operation on raw tensors per file: contract, readable reference, fast version."""
