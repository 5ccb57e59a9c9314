"""What the verbs about laws and tables do."""
