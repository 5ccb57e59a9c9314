"""Train one run under torchrun: model, data and optimizer in, checkpoints and metrics out."""
