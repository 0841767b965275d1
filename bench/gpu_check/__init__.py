"""What only a CUDA GPU can show, in one command: `scripts/gpu-check`; see docs/verification/gpu-check.md."""
