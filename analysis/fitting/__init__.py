"""From rows to a fitted law: the engines, the certificate, bootstrap draws and profiles."""
