"""One file a flavour. Each has ``BENCHMARK``, ``COUNTS`` and two functions.

``evaluation(scenes, count, rng)`` yields ``count`` questions (whole clusters) from a stream of scenes;
``training(scene, rng)`` returns the questions that one training image is asked, with plausible wrong replies.
``Question.image`` holds the scene's id here: :mod:`tasks.miniature.build` draws the pictures and puts their digests in.
"""
