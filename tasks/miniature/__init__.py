"""The embedded miniature suite: rendered scenes and questions in the column schemas of six official data sets.

Never the official benchmarks: every number that comes from here is called "miniature".
"""

#: Raised whenever a scene, a picture or a question changes; digests and scores of different versions are not comparable.
VERSION = "1"
