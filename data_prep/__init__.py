"""Makes the prepared data sets that ``ltnotes.data`` reads. Run ``python -m data_prep --help``."""
