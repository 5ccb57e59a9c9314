"""Engines that carry out launches; one file each, behind one contract."""
