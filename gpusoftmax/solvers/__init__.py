"""Batched solvers: they see an objective with a problem axis, and nothing of data, devices or softmax."""
