"""From a checkpoint to a bundle: three ONNX graphs with shared weights, proven equal to PyTorch before they ship."""
