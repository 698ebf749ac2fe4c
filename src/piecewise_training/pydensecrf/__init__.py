"""The interface of pydensecrf over this package's CRF: one line of a script's imports changes, and its masks do not."""
