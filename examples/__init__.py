"""Small data sets of our own and configs to start from; packaged so that `tunesmith demo` works from a wheel."""
