"""From finished runs to scaling laws: frames, fits, uncertainty, plots, report."""
