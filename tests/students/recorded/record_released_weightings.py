"""Runs the released weightings on random inputs and writes what they gave to released_weightings.json, beside this file.

    git clone https://github.com/Jingchensun/beta-kd && git -C beta-kd checkout 656ce71
    python tests/students/recorded/record_released_weightings.py beta-kd/mobilevlm/train/weighting.py

Nothing of that repository is copied here; only numbers are.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import torch

SIZE, WIDTH, HIDDEN = 5, 3, 4


def load(path):
    spec = importlib.util.spec_from_file_location("released", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(module, losses, features=None):
    """Total, and its gradient to every parameter and to the losses; losses are leaves, [K] scalars or [K][B] vectors."""
    leaves = [torch.tensor(v, requires_grad=True) for v in losses]
    total, weights = module(*leaves, teacher_features=features)
    total.backward()
    return {
        "losses": losses,
        "features": None if features is None else features.tolist(),
        "parameters": {k: v.tolist() for k, v in module.state_dict().items()},
        "total": total.item(),
        "weights": [v for k, v in weights.items() if k.endswith("_weight")],
        "gradient_losses": [v.grad.tolist() for v in leaves],
        "gradient_parameters": {k: p.grad.tolist() for k, p in module.named_parameters()},
    }


def main():
    path = Path(sys.argv[1])
    released = load(path)
    torch.manual_seed(0)
    rows = {"task": [], "instance": [], "instance_vectors": []}
    for spread in (0.0, 1.0, 4.0, 8.0):  # the last ones leave the clamp's band
        module = released.create_weighting_strategy("task", num_tasks=3)
        with torch.no_grad():
            module.log_vars.copy_(torch.randn(3) * spread)
        rows["task"].append(case(module, (torch.rand(3) * 3).tolist()))
    for scale in (1.0, 3.0, 10.0):
        module = released.create_weighting_strategy("instance", feature_dim=WIDTH, num_tasks=3, hidden_dim=HIDDEN)
        with torch.no_grad():
            module.uncertainty_predictor[2].weight.mul_(scale)
        features = torch.randn(SIZE, WIDTH)
        vectors = torch.rand(3, SIZE) * 3
        rows["instance"].append(case(module, vectors.mean(1).tolist(), features))
        module.zero_grad()
        rows["instance_vectors"].append(case(module, vectors.tolist(), features))
    facts = {
        "source": "https://github.com/Jingchensun/beta-kd at 656ce71, mobilevlm/train/weighting.py, run unchanged",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "script": Path(__file__).name,
        "torch": torch.__version__,
    }
    Path(__file__).with_name("released_weightings.json").write_text(
        json.dumps(facts | rows).replace("}, {", "},\n {") + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
