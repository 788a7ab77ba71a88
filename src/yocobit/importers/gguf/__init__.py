"""Reader of GGUF files, in NumPy: container, tensor types, architectures, tokenizers."""
