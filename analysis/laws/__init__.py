"""What a law may be: forms with their parameters, and what a fit minimises."""
