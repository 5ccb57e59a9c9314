"""How weights are moved: the optimizers, their rates over the steps, and over the width of a model."""
