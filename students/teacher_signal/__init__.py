"""What the teacher says about the supervised tokens: computed once, kept in one of three forms, read by every student."""
