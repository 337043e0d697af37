"""The Hub server of the package with faults on demand, and its tests."""
