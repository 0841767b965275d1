"""Stages of the fused pass: one block in, sums out. `reference` is the specification; the others are fast."""
