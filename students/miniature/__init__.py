"""The shipped models of the embedded suite, as Hugging Face folders, and how they were made (``record.json``)."""
