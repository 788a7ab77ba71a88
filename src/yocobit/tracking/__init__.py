"""Records of training runs: run log, manifest, TensorBoard events, curves and plots."""
