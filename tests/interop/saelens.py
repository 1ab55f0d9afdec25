"""The outputs of SAELens for small SAEs, written to saelens.json for test_sae.py. Runs where sae-lens is installed:

python tests/interop/saelens.py   # with sae-lens 6.54.12, transformer-lens 3.9.0, in a venv of its own
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

D, F, N = 5, 8, 4
HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "not-subtracted": {"architecture": "standard", "apply_b_dec_to_input": False},
    "layer-norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "norm-rescale": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "k": 3},
    "topk-rescaled": {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True},
}


def numbers(*shape: int, step: float) -> torch.Tensor:
    """Deterministic numbers without an obvious pattern, the same on every machine."""
    n = int(torch.tensor(shape).prod())
    return (torch.sin(step * torch.arange(1, n + 1, dtype=torch.float64)) * 1.5).float().reshape(shape)


def weights(case: str) -> dict[str, torch.Tensor]:
    tensors = {
        "W_enc": numbers(D, F, step=1.7),
        "b_enc": numbers(F, step=0.3) / 5,
        "W_dec": numbers(F, D, step=2.9),
        "b_dec": numbers(D, step=4.1) / 3,
    }
    if CASES[case]["architecture"] == "jumprelu":
        tensors["threshold"] = numbers(F, step=0.7).abs()
    return tensors


def x() -> torch.Tensor:
    return numbers(N, D, step=5.3) * 3


def main() -> None:
    from sae_lens import SAE, __version__
    from safetensors.torch import save_file

    golden: dict[str, Any] = {"sae_lens": __version__}
    for case, fields in CASES.items():
        config = {"d_in": D, "d_sae": F, "metadata": {"hook_name": "blocks.2.hook_resid_post"}} | fields
        with tempfile.TemporaryDirectory() as folder:
            SAE.from_dict(config).save_model(folder)  # for a cfg.json as SAELens writes it
            save_file(weights(case), Path(folder) / "sae_weights.safetensors")
            sae = SAE.load_from_disk(folder)
            with torch.no_grad():
                active = sae.encode(x())
                reconstruction = sae.decode(active)
            cfg = json.loads((Path(folder) / "cfg.json").read_text())
        golden[case] = {"cfg": cfg, "features": active.tolist(), "reconstruction": reconstruction.tolist()}
    (HERE / "saelens.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
