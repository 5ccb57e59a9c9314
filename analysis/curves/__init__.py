"""Laws of whole curves: the loss at every step, under any schedule of the learning rate."""
