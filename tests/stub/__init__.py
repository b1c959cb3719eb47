"""Tests of the provider that the tests of generated projects stand on: template/tests/stub."""
