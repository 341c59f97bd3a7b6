"""What the frozen vision tower sees, once per image: stored, and put in the place of pixels for whoever has the same tower.

``keys`` says which tower that is, ``store`` holds features on disk, ``pictures`` hands them to trainings, ``recall`` to
evaluations. Where pixels [I, 3, H, W] go into a model, features [I, n, C] may go in instead: its projector reads them.
"""

#: Model types whose tower is run apart from its projector (:attr:`students.models._base.Adapter.splits`).
FAMILIES = ("llava", "mobilevlm", "tinyllava")
