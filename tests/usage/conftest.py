# These files are run by test_usage.py as a user would run them, not collected for doctests.
collect_ignore_glob = ["*.py"]
