"""What the paper and other sources report, as data: ``reported.csv``; see :mod:`reports.paper_facts`."""
