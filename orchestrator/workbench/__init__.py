"""The application: what every verb does, with every room at hand."""
