"""What the project's performance figures are measured with; see README.md in this folder.

Run as modules from the repository's root (``python -m benchmarks.evaluate``). Run as files, their folder would come
first on Python's path, and ``evaluate`` would hide the package of that name.
"""
