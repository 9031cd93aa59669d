"""What is minimised: noise levels, targets, weights and the objectives built of them.

Pure functions of tensors, numbers and a `torch.Generator`; knows nothing of the training loop, which calls it.
"""
