"""Where it is all put together: a module and a function per command (`train`, `sample`, `cache`, `dataset_report`).

Nothing is imported here: most of these modules import torch, but not all of them.
"""
