"""The tensors of models: signatures, and queries as arrays of numbers or of text."""
