"""What follows from a fit: how to split a budget, which runs to make next, what a way of counting moves."""
