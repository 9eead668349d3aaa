"""PyTorch side of the project: model, losses, data and the training command."""
