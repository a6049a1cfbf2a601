"""Measures of images and of sets of images; plain tensors in, tensors out."""
