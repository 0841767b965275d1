"""Devices: where arrays live and how a pass runs there. What happens to one block is a kernel's affair."""
