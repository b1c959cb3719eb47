"""Measures the speed of a generated backend beside its peers."""
