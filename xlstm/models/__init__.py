"""The model families, one file each. This module imports without torch; `build` imports what it needs."""
