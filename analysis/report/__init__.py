"""What people look at: figures, and one page with everything."""
