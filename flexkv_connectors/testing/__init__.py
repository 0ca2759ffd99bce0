"""Conformance suites, for any implementation."""
